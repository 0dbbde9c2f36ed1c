"""The report of slow tests, of a small suite."""

from .helpers import slow_tests


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
