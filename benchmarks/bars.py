"""Horizontal bars as SVG, one panel per measure: enough of a plot for one page of the docs."""

PANELS = {
    "p50_ms": "crash to restart, p50, ms",
    "start_s_200": "start of 200 programs, s",
    "stop_s_200": "stop of 200 programs, s",
    "wakeups_200": "wake-ups in 20 s with 200 sleepers",
    "mb_s": "log of one program, MB/s",
    "beside": "old descendants alive beside the replacement (of 5)",
    "copies": "copies after kill -9 of the daemon and a new start",
}
WIDTH, BAR, GAP, LEFT, PANEL_HEAD = 640, 16, 6, 110, 34


def draw(found: dict[str, dict[str, object]]) -> str:
    """Draw all panels that have figures; bars are scaled within a panel."""
    parts: list[str] = []
    top = 10
    for key, title in PANELS.items():
        rows = {
            name: float(row[key])
            for name, row in found.items()
            if isinstance(row.get(key), int | float)
        }
        if not rows:
            continue
        parts.append(f'<text x="10" y="{top + 20}" class="t">{title}</text>')
        top += PANEL_HEAD
        largest = max(rows.values()) or 1.0
        for name, value in rows.items():
            length = max(1.0, value / largest * (WIDTH - LEFT - 90))
            kind = "us" if name == "dynorch" else "them"
            parts.append(f'<text x="10" y="{top + 12}">{name}</text>')
            parts.append(
                f'<rect x="{LEFT}" y="{top}" width="{length:.0f}" height="{BAR}" class="{kind}"/>'
            )
            parts.append(f'<text x="{LEFT + length + 6:.0f}" y="{top + 12}">{value:,.4g}</text>')
            top += BAR + GAP
    style = (
        "text{font:12px sans-serif;fill:#333} .t{font-weight:bold}"
        " .us{fill:#2a7f62} .them{fill:#9aa5b1}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + 10}">'
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    return f"{head}<style>{style}</style>{paper}{''.join(parts)}</svg>\n"
