"""Shards from strangers: nothing in them crashes a run, leaves its folder, takes long, or vanishes
without a word; and what is whole in them is read once an epoch, by however many."""

import io
import itertools
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import layouts
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shards import no_waiting as no_waiting
from test_shards import picture, read, sample, shards

sys.path.append(str(Path(__file__).parent / "faults"))
from hostile_layouts import pax, shard, summed, with_size

from minicoca.data import folder as own
from minicoca.data.order import Order

PAIR = [("a.png", b"x"), ("a.txt", b"a cat")]


def read_bytes(folder, content):
    """(names that are read, {reason: what}) of a shard that holds these bytes."""
    (folder / "s.tar").write_bytes(content)
    listed, report = read(folder / "s.tar")
    return set(listed.captions), report.named


def test_every_cut_is_named_and_costs_only_the_tail(tmp_path):
    """At any block, between two members too, where nothing in the file is damaged."""
    whole = shard([m for n in range(3) for m in sample(n)])
    with tarfile.open(fileobj=io.BytesIO(whole)) as made:
        members = made.getmembers()
    ends = [member.offset_data + member.size for member in members]
    last = -(-ends[-1] // 512) * 512
    for cut in (*range(512, last + 1, 512), 700, last + 511):
        found, named = read_bytes(tmp_path, whole[:cut])
        complete = sum(end <= cut for end in ends)
        assert found == {f"s.tar/{n:04}.png" for n in range(complete // 2)}
        said = named["shards read only as far as they are whole" if complete else "shards left out"]
        assert len(said) == 1 and f"cut off (after {complete:,} members)" in said[0]
    assert read_bytes(tmp_path, whole[: last + 512])[1] == {}  # one block of zeros is an end


def test_what_follows_the_end_is_named(tmp_path):
    """Two shards joined by `cat`, of which every tar reads the first."""
    found, named = read_bytes(tmp_path, shard(PAIR) + shard([("b.png", b"y"), ("b.txt", b"b")]))
    assert found == {"s.tar/a.png"}
    (said,) = named["shards read only as far as they are whole"]
    assert "what follows its end, at 2,560 of 20,480 bytes" in said


def test_links_and_devices_have_no_content(tmp_path):
    """A size in their headers does not hide the members after them."""
    for kind in b"123456":
        header = bytearray(shard([("l.png", b"")], tarfile.GNU_FORMAT)[:512])
        header[156], header[157:168] = kind, b"/etc/passwd"
        content = with_size(summed(bytes(header)), b"%o" % 1024)[:512] + shard(PAIR)
        found, named = read_bytes(tmp_path, content)
        assert found == {"s.tar/a.png"}
        assert len(named.get("members left alone", ())) == (kind != ord("5"))  # a folder is nothing


@pytest.mark.skipif(not shutil.which("tar"), reason="GNU tar makes sparse members")
@pytest.mark.parametrize("form", ["gnu", "pax", "pax --sparse-version=0.0"])
def test_sparse_members_cost_themselves_alone(form, tmp_path):
    """Their headers go on for as long as they have holes; what follows them is read."""
    with (tmp_path / "s.png").open("wb") as file:
        for hole in range(40):
            file.seek(200_000 * hole)
            file.write(b"data")
    for name, content in PAIR:
        (tmp_path / name).write_bytes(content)
    names = ["s.png", "a.png", "a.txt"]
    command = ["tar", "--sparse", *f"--format={form}".split(), "-cf", "s.tar", *names]
    if subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("this tar makes no such members")
    if (tmp_path / "s.tar").stat().st_size > 2**20:
        pytest.skip("this disk keeps no holes")
    listed, report = read(tmp_path / "s.tar")
    assert set(listed.captions) == {"s.tar/a.png"}
    assert [*report.named] == ["members left alone"] and "s.png (no regular file)" in str(report)


def test_headers_of_many_fields_take_no_time(tmp_path):
    """A megabyte of the shortest fields took 21 s."""
    fields = pax(b"5 a=\n" * 200_000)
    begun = time.process_time()
    _, named = read_bytes(tmp_path, fields * 3 + shard(PAIR))
    assert time.process_time() - begun < 1
    assert "a header of over 1,000 fields is no header" in named["shards left out"][0]
    assert read_bytes(tmp_path, pax(b"5 a=\n" * 999) + shard(PAIR))[0] == {"s.tar/a.png"}


def test_names_cannot_write_to_the_terminal_nor_twice(tmp_path):
    members = [("a\x1b[2J\n.png", b"x"), *PAIR, ("a.png", b"other"), ("./a.PNG", b"y")]
    found, _ = read_bytes(tmp_path, shard(members))
    assert found == {"s.tar/a.png"}
    _, report = read(tmp_path / "s.tar")
    assert all(line.isprintable() for line in str(report).splitlines())
    assert report.named["members left out, an earlier one has the name"] == ["s.tar/a.png"]


HEADERS = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 511), st.binary(min_size=1, max_size=12)),
    min_size=1,
    max_size=4,
)


@given(HEADERS, st.booleans(), st.integers(0, 9000))
@settings(max_examples=150)
def test_any_header_with_its_right_sum_is_read_or_named(tmp_path_factory, changes, cut, length):
    """Whatever its fields say; in no case is there a picture that is not in the file."""
    folder = tmp_path_factory.mktemp("any")
    members = [m for n in range(4) for m in sample(n)]
    whole = bytearray(shard(members, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=io.BytesIO(bytes(whole))) as made:
        starts = [member.offset for member in made.getmembers()]
    for member, place, new in changes:
        at = starts[member]
        header = bytearray(whole[at : at + 512])
        header[place : place + len(new)] = new[: 512 - place]
        whole[at : at + 512] = summed(bytes(header))
    if cut:
        del whole[length:]
    path = folder / "s.tar"
    path.write_bytes(whole)
    listed, report = read(path)
    for piece in listed.pieces.values():
        assert 0 <= piece.start <= piece.start + piece.size <= len(whole)
    if len(listed.captions) < 4:
        assert report.named


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 5), st.sampled_from([1, 3]))
@settings(max_examples=12)
def test_ranks_read_every_whole_sample_once(tmp_path_factory, ranks, later, stop, workers):
    """Three epochs over shards of which one is cut and one holds a picture that is damaged where
    no header says so: by `ranks` processes, and after `stop` steps by `later`, whatever their
    workers. The damaged picture's place is another's, which is said."""
    folder = shards(tmp_path_factory.mktemp("ranks") / "s", 13)
    cut = folder / "000.tar"
    with tarfile.open(cut) as made:
        cut.write_bytes(cut.read_bytes()[: made.getmember("0003.png").offset_data])
    members = [m for n in range(8, 12) for m in sample(n)]
    members[2] = (members[2][0], picture((54, 0, 9), 90)[:100])
    layouts.tar(folder / "002.tar", members)
    size, epochs = 3, 3

    def opened():
        found = own.load(folder, 8, held_out=0, validation=0, workers=workers)
        return found, Order(found.train.captions, size, 5)

    seen, steps = [], epochs * 12 // size
    for count, first, last in ((ranks, 0, stop), (later, stop, steps)):
        parts = [opened() for _ in range(count)]
        for step, (rank, (found, order)) in itertools.product(range(first, last), enumerate(parts)):
            if len(mine := order.indices(step)[rank::count]):
                seen += (found.train.batch(mine)[:, 0, 0, 0] // 6).tolist()
        said = {found.train.report().strip() for found, _ in parts} - {""}
        assert all("000.tar: it is cut off (after 6 members)" in found.notes for found, _ in parts)
        assert all("002.tar/0009.png" in one for one in said) and (said or first == last)
    once = [*range(3), *range(4, 9), 10, 10, 11, 12]  # 3 lost its caption, 9 is damaged
    for epoch in range(epochs):
        assert sorted(seen[12 * epoch : 12 * epoch + 12]) == once
