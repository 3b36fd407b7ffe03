"""Checkpoints, settings and servers are data: they run nothing, read nothing else and learn no secret."""

from __future__ import annotations

from sabotage.patch import Patch

VULNERABLE = "tests/test_vulnerable_paths.py"
TAR, TRICKS = "nemo_sdg/checkpoints/tar.py", "tests/checkpoints/test_tar.py::test_tricks_are_refused_by_name"

PATCHES = [
    Patch(
        "No pickle of a checkpoint is loaded.", "nemo_sdg/checkpoints/nemo2/index.py",
        "    root = pickles.load(member.read(_INDEX_BYTES), NAMES, where)\n",
        "    data = member.read(_INDEX_BYTES)\n    __import__(\"pickle\").loads(data)\n    root = pickles.load(data, NAMES, where)\n",
        "tests/checkpoints/test_nemo2_hostile.py::test_what_was_tampered_with_is_refused_and_nothing_runs",
    ),
    Patch(
        "Filling a model from a checkpoint reaches no code that unpickles.", "nemo_sdg/checkpoints/load.py",
        "    boxes = []\n",
        "    boxes = []\n    for common in folder.path.rglob(\"common.pt\"):\n        torch.load(common, weights_only=False)\n",
        f"{VULNERABLE}::test_checkpoints_of_others_reach_none_of_it",
    ),
    Patch(
        "A restart point that another fit has left is not unpickled.", "nemo_sdg/training/result.py",
        "if not marker.is_file() or marker.read_text() != signature:", "if not marker.is_file():",
        f"{VULNERABLE}::test_a_restart_point_without_the_mark_of_the_fit_is_taken_away_unread",
    ),
    Patch(
        "A member of a .nemo file cannot lead out of it.", TAR,
        'if name.startswith("/") or ".." in parts:', 'if name.startswith("/"):', f"{TRICKS}[parent in the middle]",
    ),
    Patch(
        "A name that stands twice in a .nemo file is refused.", TAR,
        "if same != name or (twice and not (is_folder and name in self._folders)):", "if same != name:", f"{TRICKS}[twice]",
    ),
    Patch(
        "A link cannot lead out of a checkpoint.", "nemo_sdg/checkpoints/files.py",
        " or os.path.islink(real)", "",
        "tests/checkpoints/test_reading.py::test_files_that_are_missing_short_or_elsewhere",
    ),
    Patch(
        "The test that looks for forbidden calls looks into every folder.", "tests/checkpoints/test_forbidden_words.py",
        'sorted(PACKAGE.rglob("*.py"))', 'sorted(PACKAGE.glob("*.py"))',
        "tests/checkpoints/test_forbidden_words.py::test_no_code_runs_what_came_as_data",
    ),
    Patch(
        "What comes from the hub has the bytes that were announced.", "nemo_sdg/hub/listing.py",
        "return whole.hexdigest() if good else None", "return whole.hexdigest()",
        "tests/test_hub.py::test_wrong_bytes_are_deleted_and_asked_for_again[900]",
    ),
    Patch(
        "A setting that does not exist is refused and not passed over.", "nemo_sdg/config/loading.py",
        "        if not dataclasses.is_dataclass(kind) or part not in _hints(kind):\n            raise _unknown(key, where)\n",
        "        if not dataclasses.is_dataclass(kind) or part not in _hints(kind):\n            return\n",
        "tests/test_config.py::test_a_yaml_file_may_be_a_part_and_names_itself_when_wrong",
    ),
    Patch(
        "Settings cannot name other settings or the environment.", "nemo_sdg/config/loading.py",
        'if missing or "${" in str(value):', "if missing:", "tests/test_config.py::test_a_wrong_word_is_refused_in_one_sentence",
    ),
    Patch(
        "Every setting is read.", "nemo_sdg/quality/among.py",
        "NearDuplicates(threshold, settings.shingle)", "NearDuplicates(threshold, 3)",
        "tests/test_config.py::test_every_setting_is_read_by_code_outside_the_config_folder",
    ),
    Patch(
        "A request is tried again within its budget and no longer.", "nemo_sdg/engine/backends/transport.py",
        "if tries >= self._endpoint.retries:", "if tries > self._endpoint.retries:",
        "tests/engine/backends/test_endpoint.py::test_the_budget_counts_once[3-500]",
    ),
    Patch(
        "A key goes to the server that it was given for and to no other.", "nemo_sdg/config/endpoints.py",
        "if (here.scheme, here.netloc) != (there.scheme, there.netloc):", "if here.scheme != there.scheme:",
        "tests/test_config_endpoints.py::test_a_key_is_for_one_scheme_host_and_port",
    ),
    Patch(
        "A secret in an address is written to no file.", "nemo_sdg/config/endpoints.py",
        'if "@" in endpoint.url:', "if False:",
        "tests/test_config_endpoints.py::test_what_is_no_plain_address_is_refused_also_where_nobody_uses_it",
    ),
    Patch(
        "A server with a key answers nobody who has a part of it.", "nemo_sdg/serve/http.py",
        'if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.key)',
        'if not self.key.startswith(given.encode("utf-8", "surrogateescape"))',
        "tests/serve/test_server.py::test_a_wrong_key_is_refused",
    ),
]  # fmt: skip
