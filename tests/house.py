"""Which file of the package imports which, read from the source, and a picture of it.

`python -m tests.house` writes the pictures of `docs/design.md`.
"""

import ast
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_znorm"
PAGE = ROOT / "docs/design.md"
PICTURES = {"The house": ROOT / "docs/images/rooms.svg", "Inside compare": ROOT / "docs/images/rooms_of_compare.svg"}
ROW = re.compile(r"^\| (\d+|apart) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
WIDTH, HEIGHT, BOX, GAP = 860, 74, 150, 40


def read_modules(folder: Path) -> dict[str, str]:
    """Source of each module by its dotted name without that of the package; the package itself is `__init__`."""
    modules = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        modules[name] = file.read_text()
    return modules


def imported_names(node: ast.AST) -> Iterator[str]:
    """Dotted names in an import statement."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find_imports(modules: dict[str, str]) -> dict[str, set[str]]:
    """The modules that each one imports, also for types alone; not the face of its own folder."""
    imports: dict[str, set[str]] = {}
    for module, source in modules.items():
        imports[module] = set()
        for name in (name for node in ast.walk(ast.parse(source)) for name in imported_names(node)):
            parts = name.split(".")
            if parts[0] != PACKAGE:
                continue
            known = (".".join(parts[1:end]) for end in range(len(parts), 1, -1))
            found = next((candidate for candidate in known if candidate in modules), None)
            if found not in (None, module) and not module.startswith(f"{found}."):
                imports[module].add(found)
    return imports


def room_of(module: str) -> str:
    return module.partition(".")[0]


def find_arrows(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """The rooms from which each room imports."""
    arrows: dict[str, set[str]] = {}
    for module, others in imports.items():
        arrows.setdefault(room_of(module), set()).update({room_of(other) for other in others} - {room_of(module)})
    return arrows


def within(imports: dict[str, set[str]], room: str) -> dict[str, set[str]]:
    """The imports between the modules of one room, whose name is left out."""
    return {
        module.removeprefix(f"{room}."): {other.removeprefix(f"{room}.") for other in others if room_of(other) == room}
        for module, others in imports.items()
        if module.startswith(f"{room}.")
    }


def read_page(section: str) -> tuple[dict[str, int], dict[str, set[str]]]:
    """The floor of each room, and the rooms from which it imports, as the page has them; `vision` is on floor -1."""
    floors, arrows = {}, {}
    text = re.split(r"^#+ ", PAGE.read_text(), flags=re.MULTILINE)
    (table,) = [part for part in text if part.startswith(f"{section}\n")]
    for floor, rooms, _, imports in ROW.findall(table):
        for room in re.findall(r"`(\w+)(?:\.py|/)`", rooms):
            floors[room] = -1 if floor == "apart" else int(floor)
            arrows[room] = set(re.findall(r"`(\w+)`", imports))
    return floors, arrows


def upward(imports: dict[str, set[str]], floors: dict[str, int]) -> list[str]:
    """The imports that neither stay in the room nor lead to a lower floor; none may lead to `vision`."""
    found = []
    for module, others in imports.items():
        room = room_of(module)
        for other in sorted(others):
            floor = floors[room_of(other)]
            if room != room_of(other) and not 0 <= floor < abs(floors[room]):
                found.append(f"{module} imports {other}")
    return found


def draw(floors: dict[str, int], arrows: dict[str, set[str]]) -> str:
    """An SVG of the rooms; an arrow that follows from others is left out."""
    levels = sorted({1 if floor < 0 else floor for floor in floors.values()}, reverse=True)
    rows = {level: [room for room, floor in floors.items() if (1 if floor < 0 else floor) == level] for level in levels}
    place = {}
    for row, level in enumerate(levels):
        for column, room in enumerate(rows[level]):
            start = (WIDTH - len(rows[level]) * (BOX + GAP) + GAP) / 2
            place[room] = (start + column * (BOX + GAP), 20 + row * HEIGHT)
    reached = {room: set().union(*(_reach(arrows, other) for other in arrows[room])) for room in floors}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {len(levels) * HEIGHT + 10}"'
        ' font-family="sans-serif" font-size="14">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#6b7280"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{len(levels) * HEIGHT + 10}" fill="white"/>',
    ]
    for room in floors:
        for other in sorted(arrows[room] - reached[room]):
            (x1, y1), (x2, y2) = _ends(*place[room], *place[other])
            lines.append(
                f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="#6b7280" stroke-width="1.3"'
                ' marker-end="url(#head)"/>'
            )
    for room, (x, y) in place.items():
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{BOX}" height="34" rx="5" fill="#fff7ed" stroke="#d9480f"/>'
            f'<text x="{x + BOX / 2:g}" y="{y + 22:g}" text-anchor="middle">{escape(room)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def _ends(x1: float, y1: float, x2: float, y2: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where an arrow begins and ends; one that passes a row by goes around the box in the middle."""
    begin, end = (x1 + BOX / 2, y1 + 34), (x2 + BOX / 2, y2)
    passes_by, side = y2 - y1 > HEIGHT and x1 != x2, BOX if x2 > x1 else 0
    if passes_by and x1 == (WIDTH - BOX) / 2:
        begin = (x1 + side, y1 + 17)
    elif passes_by:
        end = (x2 + BOX - side, y2 + 17)
    return begin, end


def _reach(arrows: dict[str, set[str]], room: str) -> set[str]:
    return arrows[room].union(*(_reach(arrows, other) for other in arrows[room]))


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        picture.write_text(draw(*read_page(name)))
