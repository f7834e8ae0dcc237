"""Marks of an attempt to override the instructions, by phrases that ordinary questions lack.

Such rules see the plain attempts only; `benchmarks.guard` says how many that is. Each form is
written in lower case and beside words one of which every text it fits holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import ahocorasick

from guard.hit import Hit

_LIMITS = (
    r"(?:restrict(?:ion)?s?|limit(?:ation)?s|filters?|censorship|guidelines?|morals?|morality"
    r"|ethics?|content polic(?:y|ies)|confines|constraints|rules|principles)"
)
_FORMS: dict[str, tuple[tuple[str, ...], str]] = {
    "override": (
        ("ignore", "disregard", "forget", "overrid", "bypass", "defy", "not follow", "n't follow"),
        (
            r"\b(?:ignor(?:e|ing)|disregard(?:ing)?|forget|overrid(?:e|ing)|bypass(?:ing)?|defy"
            r"|(?:do not|don't|not) follow)\b(?![^.\n]{0,30}\bmy\b)[^.\n]{0,40}"
            r"\b(?:previous|prior|above|earlier|preceding|before|system|your|all|any|every\w*"
            r"|security"
            r"|safety|content)\b[^.\n]{0,30}\b(?:instructions?|prompts?|rules?|guidelines?"
            r"|directions?"
            r"|directives?|commands|programming|training|protocols?|polic(?:y|ies)|restrictions?)\b"
        ),
    ),
    "role-change": (
        ("from now on", "no longer", "going to", "will now", "are now", "pretend"),
        (
            r"\b(?:from now on,?[^.\n]{0,40}\b(?:you (?:are|will|can|have|must)|act as|respond as"
            r"|answer as|speak as)|you are (?:no longer|not) (?:chatgpt|an ai"
            r"|a language model|bound)"
            r"|you are (?:going to|about to) (?:act|pretend|become|play|simulate)"
            r"|you (?:will|are) now (?:act|pretend|dan\b|chatgpt|an? (?:ai|un|evil|different|new))"
            r"|pretend (?:to be|you are|you're) (?:an? )?(?:dan\b|evil|ai\b|un|chat))"
        ),
    ),
    "no-limits": (
        (
            "uncensored",
            "unfiltered",
            "unrestricted",
            "amoral",
            "immoral",
            "unethical",
            "jailbroken",
            "restrict",
            "limit",
            "filter",
            "censor",
            "guideline",
            "moral",
            "ethic",
            "content polic",
            "confines",
            "constraints",
            "rules",
            "principles",
        ),
        r"\b(?:you(?:'re|r| are| will| must| have| now)?|act as|act like|pretend|persona|character"
        r"|chat\w*|\w*bot|ai|model|\w*gpt|assistant|respon\w+|answers?)\b[^\n]{0,120}"
        r"\b(?:uncensored|unfiltered|unrestricted|amoral|jailbroken|regardless of (?:\w+ ){0,3}"
        r"(?:legal|moral|ethic)\w*|(?:no|without(?: any)?|free (?:of|from)|bound by"
        r"|(?:do|does|need|will) not (?:have|follow|abide by|adhere to|care about|obey|respect)"
        r"|doesn't (?:have|follow|care about)|lacks?)(?: [\w']+){0,4}? " + _LIMITS + r")\b",
    ),
    "no-refusal": (
        ("refuse", "never say", "as an ai", "disclaimer", "warnings", "moralise", "moralize"),
        (
            r"\b(?:(?:never|cannot|can't|will not|won't|doesn't|does not|must not"
            r"|not allowed to) refuse"
            r"|never say (?:no\b|that|i can|i'm sorry|you can|\W?i can)|(?:not|never|without"
            r"|no more)"
            r" [^.\n]{0,30}as an ai (?:language )?model|(?:not|never|without|no|any) [^.\n]{0,40}"
            r"\b(?:disclaimers?|moral(?:is|iz)e|ethical warnings?))\b"
        ),
    ),
    "mode": (
        (
            "do anything now",
            "developer mode",
            "jailbreak",
            "dan mode",
            "stay a dan",
            "opposite",
            "unfiltered",
            "god mode",
        ),
        (
            r"\b(?:do anything now|developer mode (?:enabled|output|policy|response)"
            r"|with developer mode"
            r"|jailbreak(?:ed)? (?:mode|prompt|output)|dan mode|stay a dan|god mode enabled"
            r"|opposite (?:mode|day))\b|🔓"
        ),
    ),
    "prompt-leak": (
        ("prompt", "instructions", "system message", "words above", "text above", "rules"),
        (
            r"\b(?:reveal|print|show|repeat|output|tell me|give me|display|recite|leak|dump"
            r"|share|write"
            r"|what (?:is|are|was|were|does)|copy)\b[^.\n]{0,40}\b(?:system prompt|system message"
            r"|(?:initial|hidden|original|secret|exact|first|system|operating|developer)"
            r" (?:instructions|prompt|rules)|(?:full|complete) list of your (?:instructions|rules)"
            r"|instructions you (?:were|have been) given|(?:words|text) above|your prompt"
            r"|prompt (?:verbatim|word for word))\b"
        ),
    ),
    "chat-markup": (
        (
            "<|",
            "inst]",
            "sys>>",
            "end of",
            "<system",
            "system:",
            "assistant:",
            "[system",
            "thinking>",
        ),
        (
            r"<\|(?:im_start|im_end|system|user|assistant|endoftext)\|>|\[/?inst\]|<</?sys>>"
            r"|\bend of (?:user |system )?(?:input|prompt|instructions)\b|</?(?:system|thinking)>"
            r"|(?:^|\n)\W{0,6}(?:system|assistant) ?:|\[system\b"
        ),
    ),
    "hidden-order": (
        (
            "the assistant",
            "the bot",
            "ai agent",
            "any ai",
            "the ai",
            "when you read",
            "when you process",
            "when you summar",
            "decode",
            "the model",
        ),
        (
            r"\b(?:(?:note|notice|important|attention|instructions?|message) (?:to|for)"
            r" (?:the |any |all )?(?:bot|assistant|ai|llm|model)\b|any ai (?:system|agent"
            r"|assistant)"
            r"|ai agents? (?:\w+ ){0,4}(?:should|must)"
            r"|when you (?:read|process|summari[sz]e) this\b"
            r"|decode [^\n]{0,60}\b(?:and|then) (?:do|follow|execute|obey|run|comply))"
        ),
    ),
    "other-language": (
        (
            "instru",
            "istruzioni",
            "anweisung",
            "regeln",
            "richtlinien",
            "befehle",
            "reglas",
            "regole",
            "regras",
            "consignes",
            "règles",
            "regles",
            "systema",
            "sistema",
            "système",
            "systeme",
            "系统",
            "指令",
        ),
        (
            r"\b(?:ignorier\w*|vergiss|missachte\w*|verrate?|zeige?)\b[^.\n]{0,50}"
            r"\b(?:anweisungen|regeln|richtlinien|befehle|system\w*)"
            r"|\b(?:ignora\w*|ignorez|ignorer|olvid[ae]\w*|omit[ae]|dimentica\w*|esque[çc]a"
            r"|desconsider[ae]"
            r"|oublie\w*|revel[ae]\w*|rivel[ae]\w*|r[ée]v[èée]le\w*|muestra|mostr[ae]|montre\w*)\b"
            r"[^.\n]{0,50}\b(?:instrucc\w+|istruzioni|reglas|regole|regras|instru[çc][õo]es"
            r"|consignes"
            r"|r[èe]gles|instructions (?:pr[ée]c|syst)|(?:de|del|di) sistema|syst[èe]me)"
            r"|(?:忽略|无视)[^。\n]{0,20}(?:指令|指示|规则|提示)"
        ),
    ),
}

_forms = {name: re.compile(form) for name, (_, form) in _FORMS.items()}
_words = ahocorasick.Automaton()
for _name, (_list, _) in _FORMS.items():
    for _word in _list:
        _words.add_word(_word, (*_words.get(_word, ()), _name))
_words.make_automaton()


def injections(text: str) -> Iterator[Hit]:
    """Yield the first mark of each kind of an attempt to override the instructions."""
    lowered = text.lower()
    for name in dict.fromkeys(name for _, names in _words.iter(lowered) for name in names):
        if match := _forms[name].search(lowered):
            yield Hit(name, match[0], match.start())
