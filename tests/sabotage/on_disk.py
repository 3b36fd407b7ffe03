"""What is on the disk is whole, once, and of this run."""

from __future__ import annotations

from sabotage.patch import Patch

FILES, STAGE, RUN = "nemo_sdg/store/files.py", "nemo_sdg/store/stage.py", "nemo_sdg/store/run.py"
CRASHES, TESTS = "tests/store/test_crash_points.py", "tests/store/test_store.py"
SURVIVES = f"{CRASHES}::test_what_is_there_when_a_stage_returns_survives_any_power_cut"

PATCHES = [
    Patch(
        "A file is on the disk before it has its name.", FILES,
        "_write(temporary, data, os.O_TRUNC, synced=True)", "_write(temporary, data, os.O_TRUNC)", SURVIVES,
    ),
    Patch(
        "A file appears by a rename and is never written in place.", FILES,
        "            _write(temporary, data, os.O_TRUNC, synced=True)\n            disk.fs.replace(temporary, path)\n",
        "            _write(path, data, os.O_TRUNC, synced=True)\n",
        f"{CRASHES}::test_no_file_is_written_under_the_name_that_it_counts_by",
    ),
    Patch(
        "The new name of a file is on the disk before anybody counts on it.", FILES,
        "disk.fs.replace(temporary, path)\n            sync(path.parent)", "disk.fs.replace(temporary, path)", SURVIVES,
    ),
    Patch(
        "All files of a folder are on the disk before the folder has its name.", FILES,
        "                sync(Path(folder, name))\n", "                pass\n", SURVIVES,
    ),
    Patch(
        "A part that was altered is never read.", "nemo_sdg/store/parts.py",
        "if found != expected:", "if len(found) != len(expected):",
        f"{TESTS}::test_an_altered_part_is_named_with_what_was_found_and_expected[flip]",
    ),
    Patch(
        "Two different parts of one group are an error and never a choice.", STAGE,
        "            if index in parts:\n                raise two_parts(parts[index], file)\n", "",
        f"{TESTS}::test_two_parts_for_one_group_are_named_and_never_merged",
    ),
    Patch(
        "Rows in are rows kept, dropped and set aside, at every stage.", STAGE,
        'if counts["rows_in"] != counts["kept"]', 'if counts["rows_in"] < counts["kept"]',
        f"{TESTS}::test_rows_lost_or_made_up_stop_the_stage",
    ),
    Patch(
        "No file of ours can hold NaN.", FILES,
        "JSONEncoder(ensure_ascii=False, allow_nan=False,", "JSONEncoder(ensure_ascii=False, allow_nan=True,",
        f"{TESTS}::test_nan_cannot_be_written",
    ),
    Patch(
        "A run has one writer.", "nemo_sdg/store/lock.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB",
        f"{TESTS}::test_a_second_writer_is_told_who_the_first_is_and_readers_are_free",
    ),
    Patch(
        "A helper that outlives a killed writer does not keep the run locked.", "nemo_sdg/store/lock.py",
        "os.register_at_fork(after_in_child=_let_go)\n", "",
        f"{TESTS}::test_a_helper_that_outlives_its_writer_holds_no_lock",
    ),
    Patch(
        "A run goes on with its own inputs only.", RUN,
        "if before is not None and before != now:", "if before is None and before != now:",
        f"{TESTS}::test_a_changed_input_is_refused_by_name",
    ),
    Patch(
        "A setting that decides rows cannot change within a run.", "nemo_sdg/config/values.py",
        '_NOT_IDENTITY += ("generate.slots",', '_NOT_IDENTITY += ("generate.slots", "generate.temperature",',
        "tests/store/test_identity.py::test_every_field[generate.temperature]",
    ),
    Patch(
        "The hours of a budget are those of all starts together.", "nemo_sdg/store/spent.py",
        '(read_json(self._file) or {}).get("hours", 0.0)', "0.0",
        "tests/store/test_spent.py::test_the_clock_goes_on_where_the_last_start_left_it",
    ),
    Patch(
        "A sealed file that was altered is never read.", "nemo_sdg/store/seals.py",
        "whole = _json(path, value) == data", "whole = bool(_json(path, value))",
        "tests/store/test_spent.py::test_an_altered_clock_is_told",
    ),
    Patch(
        "Rows of a group stand in their order, whatever order they came in.", "nemo_sdg/stages/groups.py",
        "return [row for name in self.ids if isinstance(row := self._found[name], Response)]",
        "return [row for row in self._found.values() if isinstance(row, Response)]",
        "tests/stages/test_groups.py::test_rows_that_come_in_any_order_are_written_in_their_own",
    ),
    Patch(
        "A row that a model cannot take is set aside and counted, not dropped in silence.", "nemo_sdg/stages/groups.py",
        "        self.store.set_aside(group, lines)\n", "",
        "tests/stages/test_groups.py::test_groups_are_shared_out_and_counted[{}]",
    ),
]  # fmt: skip
