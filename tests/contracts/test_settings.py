"""Settings come from a file and the environment, and a wrong one says where and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts.errors import SettingsError
from contracts.settings import (
    SECRETS,
    DisallowedTopic,
    Learner,
    RewardComponent,
    Segment,
    Settings,
    load_settings,
    policies_of,
    process_for,
    settings_for,
    to_environment,
)
from contracts.settings.rollout import Guardrails, Rollout, Step

EXAMPLE = Path(__file__).parents[2] / "headrace.example.yaml"


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_example_file_holds_the_defaults() -> None:
    assert load_settings(EXAMPLE, {}) == Settings()


def test_example_file_names_every_setting_but_the_secrets() -> None:
    shown = msgspec.yaml.decode(EXAMPLE.read_bytes())
    known = msgspec.to_builtins(Settings(), enc_hook=str)
    for section, name in SECRETS:
        del known[section][name]
        assert f"HEADRACE_{section}__{name}".upper() in EXAMPLE.read_text()
    rewards = shown["streams"]["reward"]
    assert rewards["rating"].keys() == known["streams"]["reward"]["rating"].keys()
    for tree in (shown, known):  # one component shows what all of them may say
        tree["streams"]["reward"] = dict.fromkeys(tree["streams"]["reward"])
    assert names_of(shown) == names_of(known)


def test_defaults_hold_without_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(environment={}) == Settings()


def test_file_in_the_working_directory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headrace.yaml").write_text("kafka: {prefix: desk.}\n")
    assert load_settings(environment={}).kafka.prefix == "desk."


def test_empty_file_means_defaults(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, "# nothing\n"), {}) == Settings()


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "kafka: {prefix: a., partitions: 2}\n")
    settings = load_settings(path, {"HEADRACE_KAFKA__PREFIX": "b.", "OTHER": "x"})
    assert (settings.kafka.prefix, settings.kafka.partitions) == ("b.", 2)


def test_environment_gives_each_kind_of_value() -> None:
    settings = load_settings(
        environment={
            "HEADRACE_STATE_DIR": "/var/lib/headrace",
            "HEADRACE_KAFKA__PARTITIONS": "8",
            "HEADRACE_ROLLOUT__ALPHA_TOTAL": "0.02",
            "HEADRACE_ROLLOUT__GUARDRAILS": '{"safety": 0.008}',
            "HEADRACE_ROLLOUT__STEPS": '[{"weight": 0.5}]',
            "HEADRACE_TRACING__CONTENT": "true",
            "HEADRACE_STREAMS__SAFE_ACTIONS": '["refuse"]',
            "HEADRACE_STREAMS__REWARD": '{"rating": {"weight": 2}}',
            "HEADRACE_STREAMS__DISALLOWED_TOPICS": '[{"name": "legal", "patterns": ["sue"]}]',
        }
    )
    assert settings.state_dir == Path("/var/lib/headrace")
    assert settings.kafka.partitions == 8
    assert settings.rollout.alpha_total == 0.02
    assert settings.rollout.guardrails == Guardrails(safety=0.008)
    assert settings.rollout.steps == (Step(weight=0.5),)
    assert settings.tracing.content is True
    assert settings.streams.safe_actions == ("refuse",)
    assert settings.streams.reward == {"rating": RewardComponent(weight=2.0)}
    assert settings.streams.disallowed_topics == (DisallowedTopic(name="legal", patterns=("sue",)),)


@pytest.mark.parametrize("secret", ["[abc", '{"a": 1}', "{", "null", "true", "12345"])
def test_secret_of_any_spelling_is_taken_as_text(secret: str) -> None:
    settings = load_settings(environment={"HEADRACE_GATEWAY__FEEDBACK_SECRET": secret})
    assert settings.gateway.feedback_secret == secret


def test_address_in_brackets_is_text() -> None:
    settings = load_settings(environment={"HEADRACE_KAFKA__BOOTSTRAP": "[::1]:9092"})
    assert settings.kafka.bootstrap == "[::1]:9092"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KAFKA__BOOTSTRAP", "kafka-1:9092,10.0.0.2:9092,[fe80::1]:9092"),
        ("ENGINE__URL", "http://[::1]:8000"),
        ("ENGINE__URL", "https://engine.example/behind/a/path"),
        ("TRACING__OTLP_ENDPOINT", "http://collector:4318"),
        ("FEATURES__REDIS", "redis:6379,password=a:b,db=1"),
    ],
)
def test_addresses_of_each_form_are_taken(name: str, text: str) -> None:
    load_settings(environment={f"HEADRACE_{name}": text, "HEADRACE_FEATURES__ONLINE": "redis"})


@pytest.mark.parametrize(
    ("safe_actions", "answer"),
    [
        ('["escalate"]', '<tool_call>{"name": "escalate", "arguments": {}}</tool_call>'),
        ('["escalate"]', 'One moment. <tool_call>{"name": "escalate", "arguments": {}}'),
        ('["answer", "escalate"]', "I cannot help: this is for a person."),
    ],
)
def test_a_safe_answer_does_nothing_but_safe_actions(safe_actions: str, answer: str) -> None:
    topics = '[{"name": "legal", "patterns": ["sue"]}]'
    settings = load_settings(
        environment={
            "HEADRACE_LEARNER__CONSTRAINT__SAFE_ANSWER": answer,
            "HEADRACE_STREAMS__SAFE_ACTIONS": safe_actions,
            "HEADRACE_STREAMS__DISALLOWED_TOPICS": topics,
        }
    )
    assert settings.learner.constraint.safe_answer == answer


def test_an_address_that_is_refused_shows_no_password(tmp_path: Path) -> None:
    text = "features: {online: redis, redis: 'h:abc,password=hunter2'}"
    with pytest.raises(SettingsError, match="h:abc") as caught:
        load_settings(written(tmp_path, text), {})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("section", "name"), SECRETS)
def test_secret_in_the_file_is_refused_and_not_shown(
    tmp_path: Path, section: str, name: str
) -> None:
    path = written(tmp_path, f"{section}: {{{name}: hunter2}}\n")
    variable = f"HEADRACE_{section}__{name}".upper()
    with pytest.raises(SettingsError, match=variable) as caught:
        load_settings(path, {})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kafak: {}", "kafak"),
        ("kafka: {bootstrp: x}", "bootstrp"),
        ("kafka: {partitions: 0}", r">= 1.*\$\.kafka\.partitions"),
        ("kafka: {partitions: many}", r"\$\.kafka\.partitions"),
        ("engine: {kind: tensorrt}", r"tensorrt.*\$\.engine\.kind"),
        ("learner: {lora_rank: 7}", r"\$\.learner\.lora_rank"),
        ("rollout: {steps: [{weight: 1.0}]}", r"< 1.*\$\.rollout\.steps\[0\]\.weight"),
        ("rollout: {guardrails: {safety: 0.01}}", r"spend 0.016 in all.*\$\.rollout"),
        ("gateway: {port: 70000}", r"\$\.gateway\.port"),
        ("streams: {window_seconds: 1e12}", r"<= 3155760000.*\$\.streams\.window_seconds"),
        ("streams: {unclaimed_seconds: 1e12}", r"\$\.streams\.unclaimed_seconds"),
        ("streams: {revision_seconds: 1e12}", r"\$\.streams\.revision_seconds"),
        ("streams: {reward: {rating: {weight: 1, delay_seconds: 1e12}}}", r"delay_seconds"),
        ("features: {retention_days: 1000000}", r"\$\.features\.retention_days"),
        ("gateway: 5", r"got `int`.*\$\.gateway"),
        ("gateway: feedback_secret", r"got `str`.*\$\.gateway"),
        ("streams: {reward: {ratng: {weight: 1}}}", r"ratng.*\$\.streams\.reward"),
        ("streams: {reward: {rating: {weight: .nan}}}", r"-1000000.*\$\.streams\.reward.*weight"),
        ("streams: {flush_seconds: .inf}", r"inf.*\$\.streams\.flush_seconds"),
        ("engine: {timeout_seconds: .nan}", r"\$\.engine\.timeout_seconds"),
        ("streams: {disallowed_topics: [{name: a, patterns: ['(x']}]}", r"\(x.*'a'.*unterminated"),
        ("streams: {topics: [{name: a, patterns: ['(x']}]}", r"\(x.*'a'.*\$\.streams\.topics`;"),
        (
            "gate: {watch: {refuse_patterns: [ok, '(x']}}",
            r"'\(x' is no regular.*\$\.gate\.watch\.refuse_patterns`; .*Python's re",
        ),
        ("gate: {watch: {clarify_patterns: ['[']}}", r"\$\.gate\.watch\.clarify_patterns`;"),
        (
            (
                "streams: {disallowed_topics: [{name: a, patterns: [x]}]}\n"
                "learner: {constraint: {safe_answer: I cannot help}}"
            ),
            r"cannot help.*safe_answer.*refuse, escalate, clarify.*<tool_call>",
        ),
        (
            (
                "streams: {disallowed_topics: [{name: a, patterns: [x]}]}\n"
                "learner:\n  constraint:\n    safe_answer: '"
                '<tool_call>{"name": "transfer", "arguments": {}}</tool_call>'
                '<tool_call>{"name": "escalate", "arguments": {}}</tool_call>'
                "'"
            ),
            r"transfer.*safe_answer.*refuse, escalate, clarify.*nothing else",
        ),
        ("learner: {constraint: {safe_answer: '  '}}", r"' *' - at.*safe_answer.*words"),
        ("policy: {name: ../etc}", r"\$\.policy\.name"),
        ("policy: {name: ''}", r"\$\.policy\.name"),
        ('policy: {name: "a\\n"}', r"\$\.policy\.name"),
        (f"policy: {{name: {'a' * 65}}}", r"\$\.policy\.name"),
        ("kafka: {bootstrap: 'localhost:abc'}", r"localhost:abc.*kafka\.bootstrap.*HOST:PORT"),
        ("kafka: {bootstrap: 'a:9092,localhost'}", r"\$\.kafka\.bootstrap"),
        ("kafka: {bootstrap: 'a:65536'}", r"\$\.kafka\.bootstrap"),
        ("kafka: {bootstrap: 'http://a:9092'}", r"\$\.kafka\.bootstrap"),
        ("engine: {url: 'http://127.0.0.1:abc'}", r"\$\.engine\.url.*http://HOST:PORT"),
        ("engine: {url: 'http://[::1'}", r"\$\.engine\.url"),
        ("engine: {url: '127.0.0.1:8000'}", r"\$\.engine\.url"),
        ("engine: {url: 'http://a b:8000'}", r"\$\.engine\.url"),
        ("tracing: {otlp_endpoint: 'collector:4318'}", r"\$\.tracing\.otlp_endpoint"),
        ("features: {online: redis, redis: 'h:abc'}", r"'h:abc' - at `\$\.features\.redis"),
        ("features: {online: redis, redis: 'ssl=true'}", r"\$\.features\.redis"),
        ("learner: {seed: -1}", r"\$\.learner\.seed"),
        (
            "segments: [{policy: assistant, tier: gold, reward_model: rm}]",
            r"\$\.segments\[0\]\.reward_model. is of the general policy",
        ),
        (
            "segments: [{policy: a, tier: x, reward_model: x}, {policy: a, reward_model: y}]",
            r"\$\.segments\[1\]\.reward_model. is another one than an earlier",
        ),
        ("gate: {evaluation_samples: 200}", r"\$\.gate\.evaluation_samples.*min_samples.*300"),
        ("policy: {judge_share: 0}", r"\$\.policy\.judge_share.*mode. to observe"),
        ("streams: {window_seconds: 86400}", r"\$\.gate\.max_age_seconds.*too old"),
        ("- kafka", "must be a mapping"),
        ("kafka: [", "not YAML"),
    ],
)
def test_wrong_file_is_refused_with_place_and_bound(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(written(tmp_path, text), {})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("HEADRACE_KAFAK__BOOTSTRAP", "x", "sections: .*kafka"),
        ("HEADRACE_KAFKA__BOOTSTRP", "x", "bootstrp"),
        ("HEADRACE_KAFKA__BOOTSTRAP__HOST", "x", r"\$\.kafka\.bootstrap"),
        ("HEADRACE_STREAMS__REWARD", "{oops", "not JSON"),
        ("HEADRACE_LEARNER__KL_WEIGHT", "nan", r"\$\.learner\.kl_weight"),
        ("HEADRACE_STREAMS__REWARD__RATING__WEIGHT", "1e308", r"streams\.reward"),
        ("HEADRACE_LEARNER__MAX_LOG_RATIO", "inf", r"\$\.learner\.max_log_ratio"),
        ("HEADRACE_TRACING__CONTENT", "perhaps", r"\$\.tracing\.content"),
    ],
)
def test_wrong_environment_is_refused(name: str, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(environment={name: text})


def test_missing_file_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings(tmp_path / "none.yaml", {})


def test_settings_that_are_no_readable_text_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path, {})
    (tmp_path / "settings.yaml").write_bytes(b"kafka: \xff")
    with pytest.raises(SettingsError, match="not YAML"):
        load_settings(tmp_path / "settings.yaml", {})


def test_environment_of_a_child_gives_it_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours = load_settings(
        environment={
            "HEADRACE_GATEWAY__FEEDBACK_SECRET": "{s",
            "HEADRACE_KAFKA__BOOTSTRAP": "[::1]:9092",
            "HEADRACE_STREAMS__DISALLOWED_TOPICS": '[{"name": "x", "patterns": ["\\\\bsue\\\\b"]}]',
            "HEADRACE_STREAMS__REWARD": '{"rating": {"weight": 0.25}}',
            "HEADRACE_TRACING__CONTENT": "true",
            "HEADRACE_ENGINE__PORT": "8123",
            "HEADRACE_LEARNER__LEARNING_RATE": "1e-05",
        }
    )
    assert load_settings(environment=to_environment(ours)) == ours
    assert load_settings(environment=to_environment(Settings())) == Settings()


def names_of(tree: Any, place: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {place}
    return {place}.union(*(names_of(value, f"{place}.{key}") for key, value in tree.items()))


def test_every_policy_needs_room_in_the_engine(tmp_path: Path) -> None:
    segments = '[{"policy": "german", "language": "de"}]'
    with pytest.raises(SettingsError, match="assistant, german need room for 5 adapters"):
        load_settings(None, {"HEADRACE_SEGMENTS": segments})
    given = {"HEADRACE_SEGMENTS": segments, "HEADRACE_ENGINE__MAX_ADAPTERS": "5"}
    settings = load_settings(None, given)
    assert process_for(settings, "rollout", "assistant") == "rollout"
    assert process_for(settings, "rollout", "german") == "rollout.german"


def test_full_weights_are_for_one_policy_alone() -> None:
    given = {"HEADRACE_ENGINE__FULL_WEIGHTS": "true"}
    assert load_settings(None, given).engine.full_weights
    given["HEADRACE_SEGMENTS"] = '[{"policy": "german", "language": "de"}]'
    given["HEADRACE_ENGINE__MAX_ADAPTERS"] = "5"
    with pytest.raises(SettingsError, match=r"full_weights.*assistant, german share; give false"):
        load_settings(None, given)


def test_a_segments_policy_has_its_own_name_and_plan_and_an_unknown_one_is_refused() -> None:
    plan = Rollout(min_rewards=5)
    segment = Segment(policy="assistant-de", language="de", rollout=plan)
    settings = Settings(segments=(segment,), learner=Learner(reward_model="models/general"))
    assert policies_of(settings) == ("assistant", "assistant-de")
    assert settings_for(settings, "assistant") == settings
    german = settings_for(settings, "assistant-de")
    assert (german.policy.name, german.rollout) == ("assistant-de", plan)
    assert german.learner.reward_model == ""
    of_its_own = msgspec.structs.replace(segment, reward_model="models/german")
    own = msgspec.structs.replace(settings, segments=(of_its_own,))
    assert settings_for(own, "assistant-de").learner.reward_model == "models/german"
    with pytest.raises(SettingsError, match=r"'desk' is not one of assistant, assistant-de"):
        settings_for(settings, "desk")


def test_a_number_in_a_list_is_finite_too(tmp_path: Path) -> None:
    step = "rollout: {steps: [{weight: 0.5}, {weight: 0.6, max_wait_seconds: .inf}]}"
    with pytest.raises(SettingsError, match=r"\$\.rollout\.steps\[1\]\.max_wait_seconds"):
        load_settings(written(tmp_path, step), {})
