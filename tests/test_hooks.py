"""The hooks of pytest, on small suites."""

from .helpers import one_each, slow_tests


pytest_plugins = ["pytester"]


def test_slow_default_tests_are_reported(pytester, monkeypatch):
    monkeypatch.setattr(slow_tests, "LIMIT", 0.2)
    pytester.makeconftest(
        f"from {slow_tests.__name__} import pytest_terminal_summary\n"
    )
    pytester.makeini("[pytest]\nmarkers = thorough\n")
    pytester.makepyfile(
        """
        import time
        import pytest

        @pytest.fixture
        def resource():
            time.sleep(0.15)

        def test_slow_with_its_fixture(resource):
            time.sleep(0.15)

        def test_fast():
            pass

        @pytest.mark.thorough
        def test_slow_and_thorough():
            time.sleep(0.3)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:xdist")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        ["*default tests that took more than 0.2 s*", "*::test_slow_with_its_fixture"]
    )
    result.stdout.no_fnmatch_line("*::test_fast*")
    result.stdout.no_fnmatch_line("*::test_slow_and_thorough*")


def test_nothing_to_report(pytester):
    pytester.makeconftest(
        f"from {slow_tests.__name__} import pytest_terminal_summary\n"
    )
    pytester.makepyfile("def test_fast(): pass")
    result = pytester.runpytest_inprocess("-p", "no:xdist")
    result.assert_outcomes(passed=1)
    assert "took more than" not in result.stdout.str()


def test_one_set_of_parameters_each(pytester):
    pytester.makeconftest(f"from {one_each.__name__} import *\n")
    pytester.makeini("[pytest]\nmarkers =\n  all_sets\n  thorough\n")
    pytester.makepyfile(
        """
        import pytest

        skip_first = pytest.param(0, marks=pytest.mark.thorough)

        @pytest.mark.parametrize("x", [skip_first, 1, 2])
        def test_first(x):
            assert x == 1

        @pytest.mark.all_sets
        @pytest.mark.parametrize("x", [3, 4])
        def test_all(x):
            pass

        def test_without():
            pass
        """
    )
    options = ("-p", "no:xdist", "-m", "not thorough")
    pytester.runpytest_inprocess(*options, "--one-each").assert_outcomes(
        passed=4, deselected=2
    )
    pytester.runpytest_inprocess(*options).assert_outcomes(
        passed=4, failed=1, deselected=1
    )
