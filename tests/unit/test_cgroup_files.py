"""Figures of a cgroup, from the text of its files."""

from nsbox._cgroup_files import Reader, find
from nsbox._cgroup_layout import UNIFIED

PRESSURE = """\
some avg10=1.00 avg60=0.50 avg300=0.10 total=1500
full avg10=0.00 avg60=0.00 avg300=0.00 total=7
"""
FILES = {
    "/2/cpu.stat": "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\n",
    "/2/memory.pressure": PRESSURE,
    "/2/memory.current": "4096\n",
    "/2/pids.max": "max\n",
    "/1/memory.usage_in_bytes": "8192\n",
    "/1/memory.max_usage_in_bytes": "12288\n",
    "/1/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "/1/cpuacct.usage": "5000000\n",
}


def read(*names: str, directories: dict[tuple[str, int], str]) -> tuple[Reader, list[str]]:
    """Return the reader of some figures, and the paths that it has read."""
    files, found = find(tuple(directories), names)
    paths = [f"{directories[place]}/{file}" for place, file in files]
    return Reader(found, [FILES.get(path, "") for path in paths]), paths


def test_figures_of_one_file_are_read_once() -> None:
    """Times of one file agree, since they are of one look; units are seconds."""
    reader, asked = read("cpu_time", "user_time", "system_time", directories={(UNIFIED, 2): "/2"})
    assert asked == ["/2/cpu.stat"]
    times = [reader.figure(name) for name in ("cpu_time", "user_time", "system_time")]
    assert times == [0.003, 0.002, 0.001]
    assert reader.sources["user_time"] == "cpu.stat user_usec"


def test_only_what_was_asked_for_is_read() -> None:
    """A file that no figure needs is left alone."""
    _, asked = read("memory", directories={("memory", 1): "/1", ("pids", 1): "/1"})
    assert asked == ["/1/memory.usage_in_bytes"]


def test_a_missing_file_gives_way_to_the_next_source() -> None:
    """What one hierarchy does not measure, another one may."""
    both = {("memory", 2): "/2", ("memory", 1): "/1"}
    reader, _ = read("memory", "memory_peak", directories=both)
    assert (reader.count("memory"), reader.count("memory_peak")) == (4096, 12288)
    assert reader.sources == {
        "memory": "memory.current",
        "memory_peak": "memory.max_usage_in_bytes",
    }


def test_what_nothing_measures_is_none() -> None:
    """No directory, no file, no such line: None, and no source."""
    directories = {(UNIFIED, 2): "/2", ("pids", 2): "/2"}
    reader, _ = read("memory", "pids", "pids_refused", "pressure_io", directories=directories)
    for name in ("memory", "pids", "pids_refused", "pressure_io"):
        assert reader.figure(name) is None
    assert reader.sources == {}


def test_a_key_is_a_whole_word_at_the_beginning_of_a_line() -> None:
    """oom_kill is neither oom_kill_disable nor under_oom."""
    reader, _ = read("oom_kills", directories={("memory", 1): "/1"})
    assert reader.count("oom_kills") == 3


def test_pressure_is_the_total_of_some() -> None:
    """Seconds in which some process waited."""
    reader, _ = read("pressure_memory", directories={(UNIFIED, 2): "/2"})
    assert reader.figure("pressure_memory") == 0.0015


def test_nanoseconds_of_version_1() -> None:
    """A file that is one number has no key."""
    reader, _ = read("cpu_time", directories={("cpuacct", 1): "/1"})
    assert reader.figure("cpu_time") == 0.005


def test_what_counts_where_it_happens() -> None:
    """It is looked for in the cgroup inside, too; other figures are those of the outer one."""
    directories = {("memory", 1): "/1"}
    files, found = find(tuple(directories), ("oom_kills", "memory_peak"))
    texts = {"memory.oom_control": "oom_kill {}\n", "memory.max_usage_in_bytes": "{}\n"}

    def figures(outer: int, inner: int | None) -> tuple[int | None, int | None]:
        seat = None if inner is None else Reader(found, [texts[f].format(inner) for _, f in files])
        reader = Reader(found, [texts[file].format(outer) for _, file in files], seat)
        return reader.count("oom_kills"), reader.count("memory_peak")

    assert figures(0, 3) == (3, 0)
    assert figures(5, 3) == (5, 5)
    assert figures(2, None) == (2, 2)
