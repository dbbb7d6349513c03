"""The options of calls, as a trace tells them."""

from dataclasses import replace

from sharedtask.options import Options
from sharedtask.tracing.option_texts import OptionTexts


def test_options_that_are_not_the_defaults() -> None:
    """Each by its name; of the same options the same texts, which are made once."""
    texts, options = OptionTexts(), Options(workers=2)
    first = texts.of(options)
    assert {"workers": "2"} == first
    assert first is texts.of(options)
    assert {"workers": "2", "retries": "1"} == texts.of(replace(options, retries=1))
    assert {} == texts.of(Options())
    assert first == texts.of(options)
