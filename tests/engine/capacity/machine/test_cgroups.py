"""Limits of cgroups around the process's own are seen, in both versions. The trees are made of plain files."""

from pathlib import Path

import pytest

from engine.capacity.machine.cgroups import MemoryLimit, cpu_quotas, memory_limits
from engine.capacity.machine.host_resources import bytes_in_use, cgroup_headroom_bytes, memory_limit_bytes, num_cores

V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1_MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V1_CPU = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
UNLIMITED_V1 = 0x7FFFFFFFFFFFF000


def machine(root: Path, cgroup: str, *mounts: str) -> Path:
    """Create /proc/self of a process in `cgroup` (the text of /proc/self/cgroup)."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text("".join(f"{mount}\n" for mount in mounts))
    return root


def group(path: Path, **files: object) -> None:
    """Create a cgroup's files; memory_max is written into memory.max."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        controller, _, field = name.partition("_")
        (path / f"{controller}.{field}").write_text(f"{content}\n")


def v2_machine(root: Path, path: str = "/user.slice/run.scope") -> tuple[Path, Path]:
    """Create a machine of version 2; return it and the folder of its hierarchy."""
    return machine(root, f"0::{path}\n", "22 1 8:1 / / rw - ext4 /dev/sda1 rw", V2), root / "sys/fs/cgroup"


@pytest.mark.parametrize("limited", ["user.slice/run.scope", "user.slice", "."])
def test_a_memory_limit_of_any_enclosing_cgroup_counts(tmp_path: Path, limited: str) -> None:
    root, cgroups = v2_machine(tmp_path)
    for path in ("user.slice/run.scope", "user.slice", "."):
        limit = 5000 if path == limited else "max"
        group(cgroups / path, memory_max=limit, memory_current=1000, memory_stat="anon 10")
    assert memory_limit_bytes(root) == 5000
    assert cgroup_headroom_bytes(root) == 4000


def test_headroom_is_the_smallest_difference_and_not_that_of_the_smallest_limit(tmp_path: Path) -> None:
    root, cgroups = v2_machine(tmp_path)
    group(cgroups / "user.slice/run.scope", memory_max=5000, memory_current=100)
    siblings_use = "active_file 300\ninactive_file 400"
    group(cgroups / "user.slice", memory_max=9000, memory_current=8900, memory_stat=siblings_use)
    assert list(memory_limits(root)) == [MemoryLimit(5000, 100), MemoryLimit(9000, 8200)]
    assert (memory_limit_bytes(root), cgroup_headroom_bytes(root)) == (5000, 800)


def test_limits_of_neighbours_do_not_count(tmp_path: Path) -> None:
    root, cgroups = v2_machine(tmp_path)
    for path in ("user.slice/other.scope", "system.slice", "user.slice/run.scope/below"):
        group(cgroups / path, memory_max=1, memory_current=0, cpu_max="1 100000")
    assert list(memory_limits(root)) == []
    assert list(cpu_quotas(root)) == []


def test_the_smallest_cpu_quota_counts(tmp_path: Path) -> None:
    root, cgroups = v2_machine(tmp_path)
    group(cgroups / "user.slice/run.scope", cpu_max="max 100000")
    group(cgroups / "user.slice", cpu_max="150000 50000")
    group(cgroups, cpu_max="100000 100000")
    assert list(cpu_quotas(root)) == [3, 1]
    assert num_cores(root) == 1


def test_a_quota_below_one_core_leaves_one_thread(tmp_path: Path) -> None:
    root, cgroups = v2_machine(tmp_path)
    group(cgroups / "user.slice", cpu_max="5000 100000")
    assert num_cores(root) == 1


@pytest.mark.parametrize("limited", ["slurm/uid_7/job_1/step_0", "slurm/uid_7/job_1", "slurm"])
def test_version_1_limits_of_any_enclosing_cgroup_count(tmp_path: Path, limited: str) -> None:
    cgroup = "4:memory:/slurm/uid_7/job_1/step_0\n2:cpu,cpuacct:/slurm/uid_7/job_1/step_0\n0::/\n"
    root = machine(tmp_path, cgroup, V1_MEMORY, V1_CPU)
    for path in ("slurm/uid_7/job_1/step_0", "slurm/uid_7/job_1", "slurm"):
        limit = 7000 if path == limited else UNLIMITED_V1
        statistics = "total_active_file 40\ntotal_inactive_file 60\nactive_file 5"
        memory = root / "sys/fs/cgroup/memory" / path
        group(memory, memory_limit_in_bytes=limit, memory_usage_in_bytes=2000, memory_stat=statistics)
        group(memory, memory_use_hierarchy=1)
        quota = 200000 if path == limited else -1
        group(root / "sys/fs/cgroup/cpu,cpuacct" / path, cpu_cfs_quota_us=quota, cpu_cfs_period_us=100000)
    assert memory_limit_bytes(root) == 7000
    assert cgroup_headroom_bytes(root) == 7000 - 1900
    assert list(cpu_quotas(root)) == [2]


def test_a_version_1_limit_above_the_mounted_part_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:memory:/\n", V1_MEMORY)
    statistics = "hierarchical_memory_limit 3000\ntotal_inactive_file 100"
    memory = root / "sys/fs/cgroup/memory"
    group(memory, memory_limit_in_bytes=UNLIMITED_V1, memory_usage_in_bytes=1000, memory_stat=statistics)
    assert list(memory_limits(root)) == [MemoryLimit(3000, 900)]


def test_a_version_1_ancestor_without_hierarchy_limits_only_its_own_processes(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:memory:/a/b\n", V1_MEMORY)
    group(root / "sys/fs/cgroup/memory/a", memory_limit_in_bytes=10, memory_use_hierarchy=0)
    group(root / "sys/fs/cgroup/memory/a/b", memory_limit_in_bytes=500, memory_use_hierarchy=0)
    assert memory_limit_bytes(root) == 500


def test_a_container_sees_its_part_of_the_hierarchy_at_the_mount_point(tmp_path: Path) -> None:
    """Without a namespace the path is the host's, and the mount begins at the container."""
    mount = "35 31 0:32 /docker/1a2b /sys/fs/cgroup/memory ro master:4 - cgroup cgroup rw,memory"
    root = machine(tmp_path, "4:memory:/docker/1a2b/inner\n", mount)
    group(root / "sys/fs/cgroup/memory/inner", memory_limit_in_bytes=800, memory_usage_in_bytes=1)
    group(root / "sys/fs/cgroup/memory", memory_limit_in_bytes=600, memory_usage_in_bytes=2)
    assert list(memory_limits(root)) == [MemoryLimit(800, 1), MemoryLimit(600, 2)]


def test_version_2_beside_version_1_is_found_where_it_is_mounted(tmp_path: Path) -> None:
    unified = "41 31 0:38 / /sys/fs/cgroup/unified\\040tree rw - cgroup2 cgroup2 rw"
    root = machine(tmp_path, "4:memory:/\n0::/a\n", V1_MEMORY, unified)
    group(root / "sys/fs/cgroup/unified tree/a", memory_max=77)
    assert memory_limit_bytes(root) == 77


@pytest.mark.parametrize("cgroup", ["", "garbage\n", "0::/../elsewhere\n", "0::/gone/from/disk\n"])
def test_a_path_that_cannot_be_followed_leaves_the_limit_at_the_mount_point(tmp_path: Path, cgroup: str) -> None:
    root = machine(tmp_path, cgroup, "too short", V2)
    group(root / "sys/fs/cgroup", memory_max=900, memory_current=100, cpu_max="100000 100000")
    assert list(memory_limits(root)) == [MemoryLimit(900, 100)]
    assert list(cpu_quotas(root)) == [1]


def test_without_proc_the_usual_folders_are_read(tmp_path: Path) -> None:
    group(tmp_path / "sys/fs/cgroup/memory", memory_limit_in_bytes=900, memory_usage_in_bytes=100)
    assert list(memory_limits(tmp_path)) == [MemoryLimit(900, 100)]


def test_damaged_files_are_no_limit(tmp_path: Path) -> None:
    root, cgroups = v2_machine(tmp_path)
    group(cgroups / "user.slice", memory_max="", cpu_max="")
    group(cgroups, memory_max="-5", cpu_max="100 0", memory_stat="x\ny z\n")
    assert list(memory_limits(root)) == []
    assert list(cpu_quotas(root)) == []


def tree_of_one_process(root: Path, kilobytes: int) -> Path:
    """Create /proc/self/status of a process without children; return the folder of /proc."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/status").write_text(f"RssAnon: {kilobytes} kB\n")
    return root / "proc"


def test_the_counter_of_a_cgroup_counts_what_the_processes_do_not_show(tmp_path: Path) -> None:
    root, cgroups = v2_machine(tmp_path)
    statistics = "anon 600\nkernel 150\nactive_file 40\ninactive_file 60\nslab_reclaimable 100\nslab_unreclaimable 50"
    group(cgroups / "user.slice", memory_max=10_000, memory_current=5000, memory_stat=statistics)
    proc = tree_of_one_process(root, kilobytes=1)
    assert bytes_in_use(10_000, proc, root) == 5000 - 200
    assert bytes_in_use(10_000, tree_of_one_process(root, kilobytes=7), root) == 7 * 1024  # if the tree has more


def test_the_counter_of_a_version_1_cgroup_counts_too(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:memory:/\n", V1_MEMORY)
    memory = root / "sys/fs/cgroup/memory"
    statistics = "active_file 1\ntotal_active_file 300\ntotal_inactive_file 500"
    group(memory, memory_limit_in_bytes=9000, memory_usage_in_bytes=8000, memory_stat=statistics)
    assert bytes_in_use(9000, tree_of_one_process(root, kilobytes=1), root) == 8000 - 800


def test_of_nested_cgroups_the_one_with_the_least_room_counts(tmp_path: Path) -> None:
    root, cgroups = v2_machine(tmp_path)
    group(cgroups / "user.slice/run.scope", memory_max=10_000, memory_current=7000)
    group(cgroups / "user.slice", memory_max=50_000, memory_current=48_000)
    assert bytes_in_use(memory_limit_bytes(root) or 0, tree_of_one_process(root, 0), root) == 10_000 - 2000


def test_without_a_cgroup_the_processes_count(tmp_path: Path) -> None:
    root, _ = v2_machine(tmp_path)
    assert bytes_in_use(1 << 20, tree_of_one_process(root, kilobytes=3), root) == 3 * 1024
