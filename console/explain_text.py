"""An explanation as text for people: each part says where it comes from."""

from __future__ import annotations

from collections.abc import Iterator

from console.explain import Explanation
from contracts.events import Feedback, Reward, text_of

WIDTH = 400


def explanation_text(found: Explanation) -> str:
    """Return the whole chain as indented lines; what users wrote cannot steer the terminal."""
    parts = (
        _question,
        _choice,
        _version,
        _safety,
        _rewards,
        _learning,
        _audit,
        _spans,
    )
    return "\n".join(_printable(line) for part in parts for line in part(found))


def _question(found: Explanation) -> Iterator[str]:
    decision = found.decision
    yield f"decision {decision.id}"
    yield f"  time     {decision.time.isoformat()}"
    yield f"  user     {decision.user_id}  session {decision.session_id}"
    for message in decision.messages:
        yield f"  {message.role:<8} {_cut(text_of(message))}"
    yield f"  answer   {_cut(decision.text)}"
    if decision.error:
        yield f"  error    {decision.error}"
    yield "features used (read online before the answer)"
    for name, feature in sorted(decision.features.items()):
        age = "no value" if feature.age_seconds is None else f"{feature.age_seconds:.1f} s old"
        yield f"  {name} = {feature.value}  ({age})"
    if not decision.features:
        yield "  none"


def _choice(found: Explanation) -> Iterator[str]:
    decision, assignment = found.decision, found.decision.assignment
    yield "choice"
    likely = found.action_probability
    probability = "unknown" if likely is None else f"{likely:.3g}"
    yield f"  action   {decision.action}  probability of this answer {probability}"
    yield (
        f"  arm      {assignment.arm}  probability {assignment.probability:.3f}"
        f"  (share of the canary {assignment.canary_weight:.3f})"
    )
    yield (
        f"  engine   {decision.engine}  {len(decision.token_ids)} tokens, "
        f"{decision.timings.total_seconds:.3f} s, temperature {decision.sampling.temperature:g}"
    )


def _version(found: Explanation) -> Iterator[str]:
    version = found.version
    yield f"policy version {version.version}"
    if version.note:
        yield f"  {version.note}"
    if version.manifest is not None:
        manifest = version.manifest
        yield f"  number {manifest.sequence}, {manifest.form} on {manifest.base}"
        yield f"  trained on {manifest.samples} samples up to {manifest.as_of.isoformat()}"
        for part in manifest.trained_on:
            yield f"    {part.topic}/{part.partition} offsets {part.first} to {part.next - 1}"
        yield f"  newest feedback in it {manifest.newest_feedback_time.isoformat()}"
    if found.lineage:
        yield f"  came from {' < '.join(parent[:12] for parent in found.lineage)}"


def _safety(found: Explanation) -> Iterator[str]:
    safety = found.safety
    if safety is None:
        yield "safety: not judged yet"
        return
    word = "violation" if safety.violation else "no violation"
    yield f"safety: {word}, risk {safety.risk:.2f}"
    for hit in safety.findings:
        yield f"  {hit.category} in the {hit.where}: {hit.rule} ({hit.score:.2f})"


def _rewards(found: Explanation) -> Iterator[str]:
    events = {event.id: event for event in found.feedback}
    if not found.rewards:
        yield "reward: none yet, its attribution window may be open"
    for reward in found.rewards:
        yield from _reward(reward, events)
    used = {name for r in found.rewards for c in r.components for name in c.event_ids}
    for event in found.feedback:
        if event.id not in used:
            yield f"  not counted: {_signal(event)}"


def _reward(reward: Reward, events: dict[str, Feedback]) -> Iterator[str]:
    value = "no value" if reward.value is None else f"{reward.value:+.3f}"
    yield f"reward {reward.id}: {value} ({reward.status}, revision {reward.revision})"
    for part in reward.components:
        yield (
            f"  {part.name}: {part.value:+.2f} x {part.weight:g} = "
            f"{part.value * part.weight:+.3f}  by {part.rule}"
        )
        for event_id in part.event_ids:
            event = events.get(event_id)
            yield f"    {_signal(event) if event else f'event {event_id}'}"


def _signal(event: Feedback) -> str:
    said: list[str] = [event.kind]
    if event.name:
        said.append(event.name)
    if event.score is not None:
        said.append(f"score {event.score:+.2f}")
    if event.correction is not None:
        said.append(f"wanted {_cut(_wanted(event), 100)!r}")
    if event.reason:
        said.append(f"reason {_cut(event.reason, 100)!r}")
    return f"feedback {event.id}: {', '.join(said)} at {event.time.isoformat()} by {event.source}"


def _wanted(event: Feedback) -> str:
    assert event.correction is not None
    calls = [f"{c.function.name}({c.function.arguments})" for c in event.correction.tool_calls]
    return " ".join([text_of(event.correction), *calls]).strip()


def _learning(found: Explanation) -> Iterator[str]:
    for sample in found.samples:
        reward = "no reward" if sample.status == "censored" else f"reward {sample.reward:+.3f}"
        yield f"sample {sample.id}: revision {sample.revision}, {reward}"
    if not found.samples:
        yield "sample: none, so nothing was learned from it"
    for entry in found.learned:
        outcome = ", ".join(f"{k} {v}" for k, v in entry.outcome.items() if "id" not in k)
        version = f"version {entry.version[:12]} (number {entry.sequence}, {entry.phase})"
        yield f"  read for {version}: {outcome}"
    for entry in found.paid:
        line = entry.outcome
        rest = ", back where it was: the rest let go" if line.get("undone") else ""
        version = f"version {entry.version[:12]} (number {entry.sequence}, {entry.phase})"
        yield f"  put right in {version}: coefficient {line.get('coefficient', 0.0):+.4f}{rest}"
    if found.samples and not found.learned and not found.unread:
        yield "  no version was made from it yet"
    for damage in found.unread:
        yield f"  not known of a version: {damage}"


def _audit(found: Explanation) -> Iterator[str]:
    yield f"audit: {len(found.audit)} records"
    for record in found.audit:
        process = record.producer.split("/")[0]
        reason = f"  {record.reason}" if record.reason else ""
        yield f"  {record.time.isoformat()}  {process:<10} {record.action}{reason}"


def _spans(found: Explanation) -> Iterator[str]:
    yield f"trace {found.decision.trace_id or 'none'}: {len(found.spans)} spans"
    for span in found.spans:
        yield f"  {span.start}  {span.process:<10} {span.name}  {span.seconds * 1000:.1f} ms"


def _printable(line: str) -> str:
    """Return a line without control characters such as escapes; white space becomes a space."""
    return "".join(" " if c.isspace() else c for c in line if c.isspace() or c.isprintable())


def _cut(text: str, width: int = WIDTH) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
