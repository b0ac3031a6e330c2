"""Documents of commands as text for people: columns, widths, nothing else."""

from collections.abc import Sequence
from typing import Any


def summary_table(document: dict[str, Any]) -> str:
    """A network, layer by layer, with its totals."""
    head = ("layer", "kind", "output", "parameters", "MACs", "KiB/batch")
    total = {**document, "layer": "total", "kind": "", "output_shape": ()}
    rows = [
        (
            row["layer"],
            row["kind"],
            "x".join(map(str, row["output_shape"])),
            f"{row['parameters']:,}",
            f"{row['macs']:,}",
            f"{row['activation_bytes'] / 1024:,.0f}",
        )
        for row in (*document["rows"], total)
    ]
    return columns([head, *rows])


def seeds_table(document: dict[str, Any]) -> str:
    """Runs of several seeds, and their mean, sample standard deviation and extremes."""
    keys = [key for key, spread in document["over_seeds"].items() if spread["mean"] is not None]
    rows = [
        (f"seed {row['seed']}", row["status"] or "", *(_decimal(row[key]) for key in keys)) for row in document["runs"]
    ]
    sums = [
        (name, "", *(_decimal(document["over_seeds"][key][name]) for key in keys))
        for name in ("mean", "deviation", "lowest", "highest")
    ]
    return f"{columns([('', '', *keys), *rows, *sums])}\ngroup={document['group']}"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def check_table(document: dict[str, Any]) -> str:
    """The checks, each with what it wanted and saw, and the verdict."""
    rows = [(row["name"], "ok" if row["passed"] else "FAIL", row["wanted"], row["saw"]) for row in document["checks"]]
    failed = sum(not row["passed"] for row in document["checks"])
    verdict = f"failed: {failed} of {len(rows)} checks" if failed else f"passed: {len(rows)} of {len(rows)} checks"
    return f"{columns([('check', '', 'wanted', 'saw'), *rows])}\n{verdict}"


def bench_table(document: dict[str, Any]) -> str:
    """A race: times are medians, the ratio is to mlcore's wall time; PyTorch's best modes have a star."""
    head, rows = bench_cells(document)
    lines = [columns([head, *rows]), *bench_ratios(document)]
    lines += [f"left out: {name}: {why}" for name, why in document["left_out"].items()]
    return "\n".join([bench_title(document), *lines])


def loader_table(document: dict[str, Any]) -> str:
    """Decoding by threads, and the step with and without it."""
    head = ("decoding threads", "images/s", "CPU ms/image")
    rows = [
        (str(row["workers"]), f"{row['images_per_s']:,.0f}", f"{row['cpu_ms_per_image']:.3f}")
        for row in document["decoding"]
    ]
    step = f"{document['recipe']} {document['precision']}, batch {document['batch']}, {document['threads']} threads"
    times = f"{document['ready_ms']:.1f} ms on ready batches, {document['stream_ms']:.1f} ms on the stream's"
    return f"{columns([head, *rows])}\n{step}: {times}: {document['slower_pct']:+.1f} % in the median turn"


def bench_title(document: dict[str, Any]) -> str:
    """What was raced, and the peaks that shares are of."""
    peaks = ", ".join(f"{kind} {gflops:.0f}" for kind, gflops in document["peak_gflops"].items())
    what = "forward only" if document["forward"] else "whole training step"
    head = f"{document['model']}, {what}, batch {document['batch']}, {document['threads']} threads"
    return f"{head}; measured peak GFLOP/s: {peaks}"


def bench_cells(document: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The head and the rows of a race's table."""
    head = ("contender", "ms/step", "CPU ms", "images/s", "ratio", "% of peak", "peak MiB", "first step s", "quiet")
    return head, [
        (
            row["contender"] + (" *" if row["best"] else ""),
            f"{row['wall_ms']:,.1f}",
            f"{row['cpu_ms']:,.1f}",
            f"{row['images_per_s']:,.1f}",
            f"{row['ratio']:.2f}",
            _share(row["share_pct"]),
            f"{row['peak_mib']:,.0f}",
            f"{row['first_s']:.1f}",
            f"{row['quiet']}/{row['turns']}",
        )
        for row in document["rows"]
    ]


def bench_ratios(document: dict[str, Any]) -> list[str]:
    """How many times faster mlcore is than PyTorch's best modes, in the same precision where it has it."""
    ours = {row["precision"]: row for row in document["rows"] if row["contender"] in ("mlcore", "mlcore bf16")}
    lines = []
    for row in document["rows"]:
        if row["best"]:
            mine = ours.get(row["precision"], ours["fp32"])
            times = f"{row['ratio'] / mine['ratio']:.2f} times as fast"
            lines.append(f"{mine['contender']} is {times} as the best of its kind: {row['contender']}")
    return lines


def run_race_table(document: dict[str, Any]) -> str:
    """Whole runs: medians over the seeds, and the test error of each."""
    head = ("contender", "wall s", "CPU s", "ratio", "peak MiB", "quiet", "test error %")
    rows = [
        (
            row["contender"] + (" *" if row["best"] else ""),
            f"{row['wall_s']:,.2f}",
            f"{row['cpu_s']:,.2f}",
            f"{row['ratio']:.2f}",
            f"{row['peak_mib']:,.0f}",
            f"{row['quiet']}/{len(row['test_error_pct'])}",
            " ".join(f"{error:.2f}" for error in row["test_error_pct"]),
        )
        for row in document["rows"]
    ]
    title = f"{document['recipe']}, whole process, {document['threads']} threads, seeds {document['seeds']}"
    return (
        f"{title}\n{columns([head, *rows])}\nmlcore takes {document['share_of_best']:.2f} of the time of PyTorch's best"
    )


def warm_table(document: dict[str, Any]) -> str:
    """What was compiled or found compiled."""
    rows = [(row["name"], f"{row['kernels']:,}", f"{row['seconds']:.1f}") for row in document["rows"]]
    return columns([("network", "kernels", "seconds"), *rows])


def profile_table(document: dict[str, Any]) -> str:
    """A step, layer by layer and direction by direction."""
    rows = [
        (
            row["layer"],
            row["direction"],
            f"{row['ms']:,.2f}",
            f"{row['share_pct']:.1f}",
            f"{row['gflops']:,.1f}" if row["gflops"] else "",
            f"{row['gbytes_per_s']:,.1f}",
            _share(row["peak_pct"]) if row["gflops"] else "",
        )
        for row in document["rows"]
    ]
    peaks = ", ".join(f"{kind} {gflops:.0f}" for kind, gflops in document["peak_gflops"].items())
    title = f"{document['model']}, batch {document['batch']}, {document['threads']} threads, by {document['engine']}: "
    title += f"{document['step_ms']:,.1f} ms a step, measured peak GFLOP/s: {peaks}"
    head = ("layer", "direction", "ms", "% of step", "GFLOP/s", "GB/s", "% of peak")
    return f"{title}\n{columns([head, *rows])}"


def gradcheck_table(document: dict[str, Any]) -> str:
    """The gradients, each with how far it was off."""
    rows = [
        (
            row["name"],
            "ok" if row["ok"] else "FAIL",
            f"{row['max_error']:.1e}",
            f"{row['tolerance']:.0e}",
            row["message"],
        )
        for row in document["rows"]
    ]
    return columns([("gradient", "", "error", "allowed", ""), *rows])


def _share(pct: float | None) -> str:
    return "-" if pct is None else f"{pct:.0f}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in padded)
