"""Words and phrases that stop a reader, and the terms of the project. CONTRIBUTING.md has the rules behind them.

Each rule is a regular expression and what to write instead. Names in code are not checked: put them in backticks.
"""

from __future__ import annotations

from typing import Final

RULES: Final[tuple[tuple[str, str], ...]] = (
    # Riddles: name the thing instead.
    (r"\bwho(?:so)?ever\b", "name the person or program"),
    (r"\bwhat comes of\b", "result"),
    (r"\bnobody listens\b|\blistens at\b", "nothing listens on the port"),
    (r"\bin vain\b", "without success"),
    (r"\bdear\b", "expensive"),
    (r"\bof old\b", "earlier"),
    (r"\bby heart\b", "built-in"),
    (r"\bnone of ours\b", "not one of ours"),
    (r"\b(?:in|out)side of\b", "inside, outside"),
    (r"\bstands? (?:in|out)\w*\b", "belongs inside, is outside"),
    (r"\bundeceived\b", "in spite of"),
    (r"\banew\b", "again"),
    (r"\bbut for\b(?! the\b)", "except"),
    (r"\bunder way\b", "in flight, running"),
    (r"\bin sum\b", "in total"),
    (r"\ball the same\b", "still"),
    (r"(?<!here )\b(?:is|are|was|were) (?-i:none)\b", "is not one"),
    (r"(?<!here )\b(?:is|are|was) no (?!longer\b|more\b|less\b|greater\b|later\b|such\b)", "is not a"),
    (r"\bso that one that\b", "split the sentence"),
    (r"(?:^|[.;:] )(?-i:What) (?:is|was|has|had|comes|came|stands|an?|the)\b[^?\n]*\.", "name the subject"),
    (r"\b(?:is|are|was|were|be) looked at\b", "checked, read"),
    (r"\b(?:is|are) to be\b", "must be, should be"),
    # Words with a plainer one.
    (r"\bt(?:ells?|old|elling)\b", "report, say, show"),
    (r"\bholes?\b", "vulnerability"),
    (r"\bmend(?:s|ed|ing)?\b", "fix"),
    (r"\bha(?:s|ve) no more than\b", "no longer than, at most"),
    (r"(?:,| \w+) too(?=[.;:)]|$)", "also, as well"),
    (r"\bat all\b", "leave it out"),
    (r"\ball in all\b", "in total"),
    (r"\b(?:goes|go|went|going|gone) on\b", "continue"),
    (r"\bcomes? about\b", "happen"),
    # One term for each concept.
    (r"\b(?:an?|the|each|every|one|first|second|next|last|per) sends?\b(?! method)", "attempt"),
    (r"\bparked\b", "queued"),
    (r"\bgates?\b", "queue"),
    (r"\bpaces?\b", "rate estimate"),
    (r"\bits turn\b|\btheir turn\b", "permit"),
    (r"\b(?:ClientFault|ServerFault|NotSent)\b", "ClientStatusError, ServerStatusError, RequestRejected"),
    (r"\b(?:retries|budget)\W+(?:\w+\W+){0,4}(?:their share|its share|reserve)\b", "ratio, capacity"),
    (r"\b(?:let|lets|letting) go\b|\bg(?:ives?|iven|ave) back\b", "release"),
)
