"""Every fault of the list F01 to F60: done here on a whole system, tested elsewhere by itself, or not done, and why."""

from __future__ import annotations

from typing import Final

from chaos import test_faults_network, test_faults_script
from trackside.cli.faults import FAULTS

# Done on a whole system in this folder.
HERE: Final = {
    *(fault.id for fault in FAULTS),
    *(case.fault.id for case in test_faults_script.CASES.values()),
    *(fault[0] for fault in test_faults_network.FAULTS),
    *("F15", "F40"),  # test_faults_script.py
    *("F21", "F55", "F56", "F58"),  # test_faults_server.py
    *("F25", "F27"),  # test_faults_server_full.py
    *("F34", "F35"),  # test_faults_server_moves.py
    *("F49", "F50", "F54"),  # test_faults_more.py
    "F60",  # soak.py
}
# Tested with a fake device: a table stands for the GPUs' driver, under a real agent, worker and supervisor.
_GPU: Final = "integration/test_trainer_gpu.py"
FAKE_DEVICE: Final = {
    "F43": (_GPU, "test_an_error_of_the_hardware_takes_its_slot_out_of_service_until_somebody_puts_it_back"),
    "F44": (_GPU, "test_after_a_sticky_cuda_error_the_job_goes_on_in_another_process"),
    "F45": (_GPU, "test_a_gpu_in_use_by_somebody_else_is_blocked_then_quarantined_and_opened_when_it_is_free"),
    "F46": (_GPU, "test_a_job_sees_its_slot_s_gpu_alone_whatever_the_order_of_the_gpus"),
    "F47": (_GPU, "test_heat_is_told_and_restarts_nothing"),
}
# Tested where their cause can be made to measure: the file under tests/ and the test.
ELSEWHERE: Final = {
    "F19": (
        "integration/test_supervisor.py",
        "test_a_supervisor_killed_between_any_two_steps_is_followed_by_one_that_carries_on",
    ),
    "F23": (
        "integration/test_server_older.py",
        "test_a_server_that_comes_back_empty_gets_its_records_back_and_nothing_runs_twice",
    ),
    "F24": ("integration/test_server.py", "test_a_damaged_file_is_named_and_the_printed_command_repairs_it"),
    "F30": (
        "integration/test_server_older.py",
        "test_a_promoted_replica_that_misses_the_last_writes_takes_no_number_back",
    ),
    "F36": ("integration/test_resume_kills.py", "test_no_kill_leaves_a_checkpoint_that_does_not_load"),
    "F39": (
        "unit/test_sdk_background.py",
        "test_the_loop_goes_on_while_the_disk_is_slow_and_the_copy_is_what_is_saved",
    ),
    "F41": ("integration/test_resume_power_cut.py", "test_a_power_cut_costs_no_checkpoint_that_was_told"),
    "F42": (_GPU, "test_a_job_that_does_not_fit_on_its_gpu_is_not_started_again_unchanged"),
    "F53": ("dashboard/test_views.py", "test_a_hostile_name_stands_for_itself"),
    "F57": ("unit/test_codec.py", "test_an_unknown_field_is_ignored_and_a_missing_one_takes_its_default"),
    **FAKE_DEVICE,
}
# Not done, and why.
NOT_DONE: Final[dict[str, str]] = {}
ALL: Final = [f"F{number:02d}" for number in range(1, 61)]


def main() -> None:
    """Print where the tests of the faults made elsewhere are, for pytest's command line."""
    print("\n".join(sorted({f"tests/{file}::{name}" for file, name in ELSEWHERE.values()})))


if __name__ == "__main__":
    main()
