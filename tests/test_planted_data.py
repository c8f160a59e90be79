"""Bugs planted in shards, their writing and the filter, each seen by a check of its own."""

import inspect

import pytest
import test_filter as filter_tests
import test_hostile_shards as hostile_tests
import test_packing as packing_tests
from oracles import planted
from test_filter import model, place, scenes  # noqa: F401 - fixtures
from test_packing import dataset  # noqa: F401 - a fixture
from test_shards import no_waiting as no_waiting

from minicoca.commands import filters
from minicoca.data import checksums, layouts, packing, rules, shards
from minicoca.tasks import filtering

INTERRUPTED = packing_tests.test_what_was_interrupted_goes_on_where_it_stopped
TRAINED_ON = filter_tests.test_what_is_kept_can_be_trained_on
SEEN = (AssertionError, LookupError, OSError, ValueError, pytest.fail.Exception)
BUGS = [
    (shards, 'raise ValueError("it has no end, and is perhaps cut off" if at else "it is no tar")',
     'if not at:\n        raise ValueError("it is no tar")', {},
     hostile_tests.test_every_cut_is_named_and_costs_only_the_tail),
    (shards, 'file.read(MOST_TEXT).strip(b"\\0")', "False", {},
     hostile_tests.test_what_follows_the_end_is_named),
    (shards, "if kind in LINKS_AND_DEVICES:", "if kind == b'5':", {},
     hostile_tests.test_links_and_devices_have_no_content),
    (shards, 'more = kind == b"S" and header[482]', "more = False", {"form": "gnu"},
     hostile_tests.test_sparse_members_cost_themselves_alone),
    (shards, "if fields > MOST_FIELDS:", "if False:", {},
     hostile_tests.test_headers_of_many_fields_take_no_time),
    (packing, "digest(path).hex() == known.sha256", "True", {"stop": 3}, INTERRUPTED),
    (packing, "done.shards[name] = written", "pass", {"stop": 3}, INTERRUPTED),
    (packing, "path.unlink(missing_ok=True)", "pass", {"stop": 1}, INTERRUPTED),
    (packing, "member.size = len(content)", "member.size, member.mtime = len(content), id(path)",
     {}, packing_tests.test_bytes_are_those_of_the_samples_alone),
    (packing, "len(content) != sample.size", "False", {},
     packing_tests.test_a_picture_that_changed_stops_the_work),
    (packing, "found.of == of", "True", {},
     packing_tests.test_a_folder_of_other_things_is_left_alone),
    (checksums, "digest(path)).hex() != one.sha256", "digest(path)).hex() == one.sha256", {},
     packing_tests.test_missing_cut_and_damaged_shards_are_named),
    (rules, "words) < self.min_words", "words) <= self.min_words", {
        "caption": "a dog runs", "shared": 1, "rules": {"min_words": 3}, "why": ""},
     filter_tests.test_each_rule_at_its_border),
    (rules, "{text.lower() for text in own}", "[text.lower() for text in own]", {},
     filter_tests.test_no_caption_of_clean_data_is_dropped),
    (filtering, "[int(passing * len(others)) :]", "[int(passing * (len(others) - 1)) :]", {},
     filter_tests.test_the_least_cosine_lets_through_what_was_asked),
    (filtering, "if captions[j][0] not in captions[row]", "if True", {"batch": 7},
     filter_tests.test_cosines_are_the_models_whatever_the_batches),
    (filtering, "if one[1] >= least}", "}", {},
     filter_tests.test_the_filter_finds_exchanged_captions),
    (filters, "whole = pairs.shown(part) == part", "whole = part >= 0", {},
     filter_tests.test_damaged_pictures_are_named_and_replaced_captions_kept),
    (filters, 'line = {"image": name(pairs.paths[row]), "caption": list(texts), "split": split}',
     'line = {"image": name(pairs.paths[row]), "caption": list(texts)}', {"sharded": False},
     TRAINED_ON),
    (layouts, "if member.name in inside:", "if not inside:", {"sharded": True}, TRAINED_ON),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug[2])
def test_a_planted_bug_is_seen(bug, request):
    module, old, new, given, check = bug
    names = inspect.signature(check).parameters.keys() - given.keys()
    given = given | {name: request.getfixturevalue(name) for name in names}
    with planted(module, old, new), pytest.raises(SEEN):
        check(**given)
