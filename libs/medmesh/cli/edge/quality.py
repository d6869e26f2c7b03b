"""`medmesh edge quality`: what a data set of the node is worth.  院内数据质量。"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from medmesh.cli import language
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.progress import progress
from medmesh.cli.session import show


@click.command()
@FOLDER
@click.argument("dataset")
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with pictures and distributions there.  在该处写出含图像与分布的页面。",
)
@click.option(
    "--block",
    multiple=True,
    help="A rule that keeps items out, instead of those of policy.toml; may be given again."
    "  拦截数据的规则，代替 policy.toml 中的规则；可重复。",
)
def quality(folder: Path, dataset: str, page: Path | None, block: tuple[str, ...]) -> int:
    """Judge every image and row of DATASET by the quality rules; recorded, and nothing leaves the node.

    按质量规则检查 DATASET 的每幅影像与每行数据；留有记录，且不出节点。

    Ends with 1 when items would be kept out. The page shows pictures of patients, so it stays inside the hospital. Which rules keep
    objects out is said by data set in the node's policy.toml; what they hold back is in `medmesh edge dicom quarantine list`.

    有数据会被拦截时退出码为 1。页面含患者图像，须留在院内。哪些规则会拦截，由节点的 policy.toml 按数据集指定；被拦截的见
    `medmesh edge dicom quarantine list`。

    \b
    [quality]
    "*" = ["default"]                          # every other data set: the usual ones
    brain-mri = ["default", "uneven_spacing"]  # this one: they and another

    \b
    [quality]
    "*" = ["default"]                          # 其他数据集：常用规则
    brain-mri = ["default", "uneven_spacing"]  # 该数据集：另加一条

    Of an object: missing_modality, too_small, bits_inconsistent, not_greyscale, several_frames, unreadable_pixels, constant_image,
    clipped, few_levels, not_finite. Of a series, once nothing more comes for it: missing_slices, uneven_spacing,
    duplicate_instance_number, mixed_orientation, mixed_size, mixed_spacing, duplicate_position. The usual ones: `blocking` of the report.
    A series that is to be a volume must have places that make one, whatever is said here.

    对象的规则：missing_modality, too_small, bits_inconsistent, not_greyscale, several_frames, unreadable_pixels, constant_image,
    clipped, few_levels, not_finite。序列的规则（不再有新对象到达之后）：missing_slices, uneven_spacing,
    duplicate_instance_number, mixed_orientation, mixed_size, mixed_spacing, duplicate_position。常用规则见报告中的 `blocking`。将
    作为体数据的序列，无论此处如何设置，都须有能构成体数据的位置。
    """
    from medmesh.quality.html import page as drawn
    from medmesh.quality.rules import known
    from medmesh_edge.quality import judge

    blocking = known(block) if block else None
    with progress(dataset, hidden=not sys.stderr.isatty(), file=sys.stderr) as told:
        report = on_site(folder, lambda site: judge(site, dataset, blocking, told))
    if page is not None:
        page.touch(mode=0o600)
        page.write_text(drawn(report, language()), encoding="utf-8")
    show(report.document(language()))
    return 1 if report.blocked else 0
