"""How many comparisons it takes to tell a win rate from one half.

By the normal approximation of a two-sided test at 5 % with 80 % power, for independent decided pairs: one pair per prompt. Several
pairs of one prompt tell less than as many prompts do. A tie decides nothing; divide by the share of decided pairs.
"""

import math

from .text import percent

LEVEL, POWER = 0.05, 0.8
WIN_RATES = (0.7, 0.6, 0.55, 0.53, 0.52, 0.51)
"""The true win rates that sentences and tables name."""
_Z_LEVEL = 1.959963984540054  # 97.5 % of the normal distribution lie below
_Z_POWER = 0.8416212335729143  # 80 % lie below


def pairs_needed(win_rate: float) -> int:
    """Decided pairs after which a true win rate is told from one half, 783 for 55 % or 45 %.

    n = ((z_level / 2 + z_power · sqrt(w (1 − w))) / (w − ½))², the sample size of a test of one proportion.

    Raises:
        ValueError: if the win rate is one half, which no number of pairs tells from itself, or not a share.
    """
    if not 0 <= win_rate <= 1 or win_rate == 0.5:
        raise ValueError(f"the win rate must be from 0 to 1 and not 0.5, got {win_rate}")
    spread = _Z_LEVEL / 2 + _Z_POWER * math.sqrt(win_rate * (1 - win_rate))
    return math.ceil((spread / (win_rate - 0.5)) ** 2 - 1e-9)


def win_rate_shown(n_decided: float) -> float | None:
    """The smallest true win rate above one half that this many decided pairs show; None below four pairs, which show none.

    The inverse of `pairs_needed`: the larger root of (n + z_power²) d² − z_level √n d + (z_level² − z_power²) / 4 = 0, ½ + d.
    """
    if n_decided < _Z_LEVEL**2:  # even if every pair were won
        return None
    root = _Z_POWER * math.sqrt(n_decided - _Z_LEVEL**2 + _Z_POWER**2)
    return 0.5 + (_Z_LEVEL * math.sqrt(n_decided) + root) / (2 * (n_decided + _Z_POWER**2))


def pairs_to_show(n_decided: float, tie_rate: float) -> int:
    """Pairs that people must see for this many to be decided.

    Args:
        tie_rate: share of the pairs that end in a tie, 0 to less than 1.

    Raises:
        ValueError: if every pair is a tie, or the rate is not a share.
    """
    if not 0 <= tie_rate < 1:
        raise ValueError(f"the tie rate must be at least 0 and less than 1, got {tie_rate}")
    return math.ceil(n_decided / (1 - tie_rate) - 1e-9)  # 160 / 0.8 must not become 201


def next_win_rate(n_decided: float) -> float | None:
    """The largest of WIN_RATES that needs more decided pairs than these; None if they all need fewer."""
    return next((rate for rate in WIN_RATES if pairs_needed(rate) > n_decided), None)


def power_sentence(n_decided: int, tie_rate: float = 0.0) -> str:
    """What this many decided pairs show: "with 200 decided pairs a true win rate of 60 % shows; 55 % needs 783".

    Args:
        tie_rate: share of ties so far, 0 to less than 1; above 0, the pairs to show are said too: "…, 979 pairs with 20 % ties".
    """
    return f"with {n_decided:,} decided pairs {_shown(n_decided, tie_rate)}"


def sample_sentence(n_pairs: int, tie_rate: float = 0.0) -> str:
    """What this many pairs show, ties among them: "250 pairs with 20 % ties are about 200 decided ones: a true win rate of …".

    Args:
        tie_rate: share of ties so far, 0 to less than 1.
    """
    if not tie_rate:
        return power_sentence(n_pairs)
    n_decided = round(n_pairs * (1 - tie_rate))
    return f"{n_pairs:,} pairs with {percent(tie_rate, 0)} ties are about {n_decided:,} decided ones: {_shown(n_decided, tie_rate)}"


def _shown(n_decided: int, tie_rate: float) -> str:
    smallest, following = win_rate_shown(n_decided), next_win_rate(n_decided)
    shown = "no win rate shows" if smallest is None else f"a true win rate of {rate_text(smallest)} shows"
    if following is None:
        return shown
    n_needed = pairs_needed(following)
    with_ties = f", {pairs_to_show(n_needed, tie_rate):,} pairs with {percent(tie_rate, 0)} ties" if tie_rate else ""
    return f"{shown}; {percent(following, 0)} needs {n_needed:,}{with_ties}"


def rate_text(share: float) -> str:
    """A win rate that is shown, as whole percent from 55 % on, tenths below. Rounded up: a smaller one would need more pairs."""
    digits = 0 if share > 0.55 else 1
    steps = 100 * 10**digits
    return percent(math.ceil(share * steps - 1e-9) / steps, digits)
