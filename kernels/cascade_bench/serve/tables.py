"""The tables of `cascade bench serve`."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cascade.tables import Table, Value
from cascade_bench.records import Spread
from cascade_bench.serve.against import EXACT, FAST
from cascade_bench.serve.records import PERCENTILES, Admission, Ending, Load, Steadiness
from cascade_bench.settings import ServeBenchConfig

_MEBIBYTE: Final = 2**20


def tables(figures: Mapping[str, Any], config: ServeBenchConfig) -> list[Table]:
    """Return a table of every part that was measured."""
    found: list[Table] = []
    if "loads" in figures:
        capacity = Load.model_validate(figures["capacity"])
        found.append(
            _loads(capacity, [Load.model_validate(one) for one in figures["loads"]], config)
        )
    if "mixture" in figures:
        found.append(_mixture(_admissions(figures["mixture"]), config))
    if "soak" in figures:
        found.append(_soak(Load.model_validate(figures["soak"]), config))
        found.append(_endings(figures["endings"]))
    if "against" in figures:
        found += _against(figures["against"], config)
    return found


def _admissions(figures: Mapping[str, Any]) -> dict[str, list[Admission]]:
    return {
        name: [Admission.model_validate(one) for one in listed] for name, listed in figures.items()
    }


def _loads(capacity: Load, loads: Sequence[Load], config: ServeBenchConfig) -> Table:
    head = ["requests", "asked, pictures/s", "in time, pictures/s", "of the capacity"]
    head += [f"p{percent}, s" for percent in PERCENTILES]
    head += ["sent", "in time", "late", "refused", "failed", "lost", "different", "memory, MiB"]
    rows = [_load(f"{config.clients} clients, each waits", capacity, capacity)]
    rows += [
        _load(f"at {factor:g} of that", load, capacity)
        for factor, load in zip(config.loads, loads, strict=True)
    ]
    lag = max(load.lag for load in loads)
    note = (
        f"Requests for one picture each, of {config.clients} clients, that arrive for "
        f"{config.seconds:g} s, independently (seed {config.seed}) and whatever becomes of those "
        "before them; rates are pictures over the time to the last answer. Late is after "
        f"{config.patience:g} s; at most {config.waiting} wait, others are refused"
        f"{_retried(config)}. Lost got no answer at all; different is not, bit for bit, what the "
        f"same request gave before. Memory: at first and at most. Requests were sent {lag:.2f} s "
        f"too late at most. {_counters(loads)}"
    )
    return Table(head, rows, note)


def _load(name: str, load: Load, capacity: Load) -> list[Value]:
    held = [size for _, size in load.memory]
    return [
        name,
        load.asked,
        load.rate,
        load.rate / capacity.rate,
        *(load.percentile(percent) for percent in PERCENTILES),
        sum(load.outcomes.values()),
        *(load.outcomes.get(name, 0) for name in ("drawn", "late", "refused", "failed")),
        load.unanswered,
        load.different,
        f"{_mebibytes(held[0])}, {_mebibytes(max(held))}" if held else None,
    ]


def _retried(config: ServeBenchConfig) -> str:
    if not config.retries:
        return ""
    return f" and come again when they were told to, up to {config.retries} times"


def _counters(loads: Sequence[Load]) -> str:
    left = [f"{name} {value:g}" for load in loads for name, value in load.left_over.items()]
    told = "; ".join(left)
    unadvised = sum(load.unadvised for load in loads)
    advice = f" {unadvised} refusals did not say when to come again." if unadvised else ""
    counted = f"Left over in its counters: {told}." if left else "Its counters are back at 0."
    return counted + advice


def _mixture(found: Mapping[str, Sequence[Admission]], config: ServeBenchConfig) -> Table:
    head = ["one picture", "begun, s", "done, s", "the large one, s"]
    rows: list[list[Value]] = [
        [
            name,
            _median([one.begun for one in of]),
            _median([one.done for one in of]),
            _median([one.large for one in of if one.large is not None]),
        ]
        for name, of in found.items()
    ]
    note = (
        f"Medians of {config.rounds}. The large one asks for {config.large} pictures and comes "
        "one second earlier, from another client; begun is when the small one's first picture has "
        "left the queue."
    )
    return Table(head, rows, note)


def _soak(load: Load, config: ServeBenchConfig) -> Table:
    steady = Steadiness.of(load.memory)
    head = ["soak", "pictures/s", "sent", "in time", "clients left", "late", "refused", "failed"]
    head += ["lost", "different", "memory, 2nd and last quarter, MiB"]
    outcomes = [load.outcomes.get(name, 0) for name in ("drawn", "left", "late", "refused")]
    row: list[Value] = [
        f"{config.soak:g} s",
        load.rate,
        sum(load.outcomes.values()),
        *outcomes,
        load.outcomes.get("failed", 0),
        load.unanswered,
        load.different,
        f"{_mebibytes(steady.before)}, {_mebibytes(steady.after)}" if steady else None,
    ]
    note = (
        f"Of the requests {config.streamed:.0%} stream; {config.leaving:.0%} of the clients close "
        "their connection at a random time. Memory: medians. "
        f"{_counters([load])}"
    )
    return Table(head, [row], note)


def _endings(figures: Mapping[str, Any]) -> Table:
    head = ["ended by", "exit status", "after, s", "in time", "refused", "without an answer"]
    head += ["known after, s"]
    rows: list[list[Value]] = []
    for name in ("SIGTERM", "SIGKILL"):
        one = Ending.model_validate(figures[name])
        drawn, refused = one.outcomes.get("drawn", 0), one.outcomes.get("refused", 0)
        others = sum(one.outcomes.values()) - drawn - refused
        rows.append([name, one.status, one.seconds, drawn, refused, others, one.told])
    again = figures["restarted"]
    same = "the same bits" if not again["different"] else "other bits"
    note = (
        "One second after every client has asked for a picture, half of them by a stream. Started "
        f"again at the same port, the server was ready after {again['ready']:.1f} s and its "
        f"first picture was {again['outcome']}, with {same}."
    )
    return Table(head, rows, note)


def _against(figures: Mapping[str, Any], config: ServeBenchConfig) -> list[Table]:
    seconds: Mapping[str, Sequence[float]] = figures["seconds"]
    naive = [name for name in seconds if name not in (EXACT, FAST)]
    taken: Mapping[str, Sequence[float]] = figures["processor"]
    rows: list[list[Value]] = [
        [
            name,
            1 / statistics.median(of),
            *(_ratio(of, seconds[other]) for other in naive),
            statistics.median(taken[name]),
            *(_ratio(taken[name], taken[other]) for other in naive),
            figures["distances"][name],
        ]
        for name, of in seconds.items()
    ]
    head = ["server", "pictures/s", *(f"of {name}'s" for name in naive)]
    head += ["processors' s a picture", *(f"{name}'s / its" for name in naive)]
    note = (
        f"{config.clients} clients at once, {config.rounds} blocks of each in turn; medians, and "
        "of the ratios, pair by pair, the median and the 20th to 80th percentile. What is taken of "
        "the processors depends little on who else runs. Distance: RMS of a picture from ours, "
        "grey levels. Fast has no guidance in the second half of the steps. "
        "A naive server is a pipeline behind a lock."
    )
    throughput = Table([*head, "distance"], rows, note)
    admitted = _admissions(figures["admissions"])
    return [throughput, _waits(admitted, naive, config)]


def _waits(
    admitted: Mapping[str, Sequence[Admission]], naive: Sequence[str], config: ServeBenchConfig
) -> Table:
    head = [f"one picture, a second after {config.large}", "begun, s", "done, s", "those, s"]
    head += [f"{name}'s / its time until {what}" for name in naive for what in ("begun", "done")]
    rows: list[list[Value]] = []
    for name, of in admitted.items():
        begun, done = [one.begun for one in of], [one.done for one in of]
        row: list[Value] = [name, _median(begun), _median(done)]
        row.append(_median([one.large for one in of if one.large is not None]))
        for other in naive:
            row.append(_ratio(begun, [one.begun for one in admitted[other]]))
            row.append(_ratio(done, [one.done for one in admitted[other]]))
        rows.append(row)
    return Table(head, rows, "Medians, and ratios as above; another client asks for the small one.")


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    # Nothing is begun sooner than a message takes on the loopback.
    least = 1e-3
    spread = Spread.of([max(least, one) for one in ours], [max(least, one) for one in theirs])
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _mebibytes(size: float) -> int:
    return round(size / _MEBIBYTE)
