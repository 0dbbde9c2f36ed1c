"""An option of pytest, `--one-each`, that runs each test with one set of parameters."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-each",
        action="store_true",
        help="run tests with their first sets of parameters, if not marked `all_sets`",
    )


# After the selection by marks.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    if not config.getoption("--one-each"):
        return
    first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
    kept = {*first.values(), *(i for i in items if i.get_closest_marker("all_sets"))}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
