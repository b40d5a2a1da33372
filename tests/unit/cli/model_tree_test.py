from datetime import UTC, datetime

from training_fsm.cli.model_tree import INDENTED_MAX, family
from training_fsm.domain.facts import ModelRef
from training_fsm.store.model_reads import ModelVersion

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def _ref(text: str) -> ModelRef:
    name, _, version = text.partition("/")
    return ModelRef(name=name, version=int(version))


def _version(text: str, parent: str | None = None, root: str | None = None, depth: int = 0) -> ModelVersion:
    ref = _ref(text)
    return ModelVersion(
        model=ref.name,
        version=ref.version,
        run_id=text,
        parent=parent and _ref(parent),
        root=_ref(root or text),
        depth=depth,
        continues=None,
        parent_kind=None,
        champion=False,
        candidate=False,
        symbol="EURUSD",
        timeframe="4h",
        data_start=NOON,
        data_end=NOON,
        data_digest="d",
        feature_semver="1.0.0",
        feature_hash="h",
        steps=1,
        test_total_return_fraction=None,
        test_sharpe=None,
        test_max_drawdown_fraction=None,
        registered_at=NOON,
    )


def _drawn(*versions: ModelVersion) -> list[str]:
    return [f"{lines}{relative.ref}{'' if relative.details else ' ?'}" for lines, relative in family(versions)]


def test_children_stand_below_their_parents() -> None:
    """Siblings in the order in which they came, also under other names, and one line after the other."""
    assert _drawn(
        _version("a/1"),
        _version("b/1"),
        _version("a/2", "a/1", "a/1", 1),
        _version("a/3", "a/1", "a/1", 1),
        _version("c/1", "a/2", "a/1", 2),
        _version("a/4", "c/1", "a/1", 3),
    ) == [
        "a/1",
        "├─ a/2",
        "│  └─ c/1",
        "│     └─ a/4",
        "└─ a/3",
        "b/1",
    ]  # fmt: skip


def test_ancestors_that_nobody_here_registered_are_drawn() -> None:
    """The root and the parent that a child names are there, and how many generations are missing between them."""
    versions = (
        _version("a/7", "a/6", "z/1", 5),
        _version("a/8", "a/6", "z/1", 5),
        _version("y/1", "z/1", "z/1", 1),
    )
    assert _drawn(*versions) == ["z/1 ?", "├─ a/6 ?", "│  ├─ a/7", "│  └─ a/8", "└─ y/1"]
    rows = list(family(versions))
    assert [row.relative.generation for row in rows] == [0, 4, 5, 5, 1]
    assert rows[1].relative.parent == _ref("z/1")


def test_a_parent_given_behind_its_child_is_known_all_the_same() -> None:
    """The order of what is given decides only among siblings."""
    assert _drawn(_version("a/2", "a/1", "a/1", 1), _version("a/1")) == ["a/1", "└─ a/2"]


def test_a_long_line_stays_on_the_page() -> None:
    """Behind so many generations an only child stands straight below its parent; siblings are told apart still."""
    line = [_version("a/1"), *(_version(f"a/{n}", f"a/{n - 1}", "a/1", n - 1) for n in range(2, 1200))]
    drawn = _drawn(*line, _version("b/1", "a/1100", "a/1", 1100))
    assert len(drawn) == 1200
    assert drawn[INDENTED_MAX].endswith(f"└─ a/{INDENTED_MAX + 1}")
    assert drawn[INDENTED_MAX + 1] == " " * 3 * INDENTED_MAX + f"↳ a/{INDENTED_MAX + 2}"
    assert drawn[1100] == " " * 3 * INDENTED_MAX + "├─ a/1101"
    assert drawn[-1] == " " * 3 * INDENTED_MAX + "└─ b/1"


def test_a_ring_is_drawn_once() -> None:
    """A registry that counts anew can make a model its own ancestor; each is shown, and the drawing ends."""
    ring = (_version("a/1", "a/2", "a/1", 2), _version("a/2", "a/1", "a/1", 1))
    assert _drawn(*ring) == ["a/1", "└─ a/2"]


def test_the_one_that_was_asked_for_is_marked() -> None:
    """And no other."""
    versions = (_version("a/1"), _version("a/2", "a/1", "a/1", 1))
    assert [relative.asked_for for _, relative in family(versions, _ref("a/2"))] == [False, True]
