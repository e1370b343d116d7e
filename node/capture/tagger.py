"""A coarse tag by keywords: journalism, code, research, planning or general.

Leaves are found from embeddings, never from tags. The tag filters exports, and the majority of a
leaf's tags says whether it is a skill or a reasoning leaf. It must be cheap and give the same
answer everywhere, so it is a table and not a model.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Final

import re2

DOMAINS: Final = ("journalism", "code", "research", "planning", "general")
GENERAL: Final = "general"
SCORE_MIN = 2  # one telling word, or two weak ones
TAGGED_CHARS = 4096  # of a text; the opening says what it is about

_STRONG = {
    "journalism": """
        journalist journalism newsroom headline byline editorial reporter reporting op-ed lede
        interviewee press-release newspaper fact-check council mayor senator breaking-news
        lead-paragraph news-article news-story city-council
    """,
    "code": """
        python javascript typescript java rust golang kotlin sql html css regex function class
        method compile compiler debug debugger stacktrace traceback exception refactor api
        endpoint docker kubernetes git github bash shell linux algorithm async await decorator
        unittest pytest npm pip repository codebase backend frontend postgres postgresql mysql
        sqlite json yaml xml unit-test pull-request stack-trace command-line import variable
        array tensor library networkx sympy numpy scipy torch transformers libp2p tuple
        dataframe boolean parameter
    """,
    "research": """
        hypothesis literature citation citations dataset methodology empirical theorem
        peer-reviewed abstract arxiv doi statistical significance regression meta-analysis
        survey experiment experiments findings scientific scholarly thesis dissertation clinical
        trial literature-review research-question related-work
    """,
    "planning": """
        roadmap milestone milestones schedule timeline deadline agenda itinerary budget sprint
        backlog okr okrs prioritize checklist kickoff stakeholder stakeholders gantt
        project-plan action-items to-do meal-plan next-steps meeting-agenda
    """,
}
_WEAK = {
    "journalism": "article story news press interview quote vote election publish readers coverage",
    "code": "code bug error file string list return returns loop server database query test script "
    "install deploy build run command object value index type input output graph matrix",
    "research": "study paper research analysis evidence data results sample theory review model "
    "compare measure science",
    "planning": "plan planning goal goals task tasks week meeting organize steps project trip "
    "event calendar",
}
_WORD = re.compile(r"[a-z][a-z0-9+#]*(?:-[a-z0-9]+)*")
_CODE_SIGN = re2.compile(  # in linear time, and a third of that of `re`
    rb"(?m)```|\b\w+\([^()\n]{0,80}\)|^\s*(?:def|class|import|from|fn|func|const|let|var|public|#include)"
    rb"\s|[{};]\s*$|\w+\.\w+\.\w+|=>|==|\$ \w"
)


def _weights() -> dict[str, tuple[str, int]]:
    table: dict[str, tuple[str, int]] = {}
    for weight, group in ((1, _WEAK), (2, _STRONG)):
        for domain, words in group.items():
            table |= dict.fromkeys(words.split(), (domain, weight))
    return table


_WEIGHTS = _weights()
_BEFORE_HYPHEN = frozenset(word.partition("-")[0] for word in _WEIGHTS if "-" in word)


class DomainTagger:
    """Tags a text by the sum of its keywords' weights. Holds no state."""

    def tag(self, text: str) -> str:
        """Return one of DOMAINS.

        A telling word counts 2 and a common one 1, each once; two words are looked up with a hyphen
        between them as well. A sign of program text counts 2. Below SCORE_MIN it is "general"; of
        two equal sums the domain that stands first in DOMAINS.
        """
        head = text[:TAGGED_CHARS]
        words = _WORD.findall(head.lower())
        pairs = {f"{a}-{b}" for a, b in pairwise(words) if a in _BEFORE_HYPHEN}
        scores: Counter[str] = Counter()
        for word in (set(words) | pairs) & _WEIGHTS.keys():
            domain, weight = _WEIGHTS[word]
            scores[domain] += weight
        if _CODE_SIGN.search(head.encode("utf-8", "replace")):
            scores["code"] += 2
        if not scores:
            return GENERAL
        best = max(DOMAINS, key=lambda domain: scores[domain])  # the first of equals
        return best if scores[best] >= SCORE_MIN else GENERAL
