"""The public datasets as data: how their folders are laid out, what the two images are, what the paper has on them.

A set's folder holds one folder per modality, and either one folder per split or the lists ``train.txt`` and
``test.txt`` (a name without suffix per line). Folder names are compared without case, and ``-`` counts as ``_``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from upfusion.runtime.errors import InputError
from upfusion.runtime.pairs import Pair, find_pairs

Split = Literal["train", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "test", "all")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a set keeps its images; ``{split}`` stands for ``train`` or ``test``."""

    first: str
    second: str

    @property
    def by_split(self) -> bool:
        """Whether each split has folders of its own."""
        return "{split}" in self.first


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A public dataset of registered pairs."""

    name: str
    folders: tuple[str, ...]
    """Names its folder goes by."""
    modalities: tuple[str, str]
    """What the first and the second image are."""
    first_in_color: bool
    """Fusion and metrics work on the first image's luma; its chroma may be put back into the fused image."""
    layouts: tuple[Layout, ...]
    parts: tuple[str, ...] = ()
    """Names of the datasets this one consists of, each in a folder of its own."""
    source: str = ""
    note: str = ""


# Layouts that occur for many sets; the first two are those of the reference data.
COMMON = (
    Layout(first="vis", second="ir"),
    Layout(first="a", second="b"),
    Layout(first="vi", second="ir"),
    Layout(first="visible", second="infrared"),
    Layout(first="first", second="second"),
)

_DATASETS = (
    Dataset(
        name="MSRS",
        folders=("msrs", "msrs_main"),
        modalities=("visible", "infrared"),
        first_in_color=True,
        layouts=(Layout(first="{split}/vi", second="{split}/ir"), *COMMON),
        source="github.com/Linfeng-Tang/MSRS",
        note="480x640 road scenes, day (D) and night (N); 1083 training and 361 test pairs",
    ),
    Dataset(
        name="LLVIP",
        folders=("llvip",),
        modalities=("visible", "infrared"),
        first_in_color=True,
        layouts=(Layout(first="visible/{split}", second="infrared/{split}"), *COMMON),
        source="github.com/bupt-ai-cz/LLVIP",
        note="1024x1280 street scenes at night; non-commercial use",
    ),
    Dataset(
        name="M3FD",
        folders=("m3fd", "m3fd_fusion", "m3fd_detection"),
        modalities=("visible", "infrared"),
        first_in_color=True,
        layouts=COMMON,  # the download has Vis and Ir
        source="github.com/JinyuanLiu-CV/TarDAL",
        note="mostly 768x1024; M3FD_Fusion holds 300 pairs without a split",
    ),
    Dataset(
        name="RoadScene",
        folders=("roadscene", "roadscene_master"),
        modalities=("visible", "infrared"),
        first_in_color=True,
        layouts=(Layout(first="crop_LR_visible", second="cropinfrared"), *COMMON),
        source="github.com/hanna-xu/RoadScene",
        note="221 pairs of many sizes, often odd; no official split",
    ),
    Dataset(
        name="TNO",
        folders=("tno",),
        modalities=("visible", "infrared"),
        first_in_color=False,
        layouts=COMMON,
        source="figshare.com/articles/dataset/TNO_Image_Fusion_Dataset/1008029",
        note="military scenes, gray; papers choose their own pairs",
    ),
    Dataset(
        name="Harvard CT-MRI",
        folders=("ct_mri", "mri_ct"),
        modalities=("CT", "MRI"),
        first_in_color=False,
        layouts=(Layout(first="{split}/CT", second="{split}/MRI"), Layout(first="CT", second="MRI"), *COMMON),
        source="github.com/xianming-gu/Havard-Medical-Image-Fusion-Datasets",
        note="256x256 brain slices of the Whole Brain Atlas on exactly black ground",
    ),
    Dataset(
        name="Harvard PET-MRI",
        folders=("pet_mri", "mri_pet"),
        modalities=("PET", "MRI"),
        first_in_color=True,
        layouts=(Layout(first="{split}/PET", second="{split}/MRI"), Layout(first="PET", second="MRI"), *COMMON),
        source="github.com/xianming-gu/Havard-Medical-Image-Fusion-Datasets",
        note="256x256 brain slices on exactly black ground, PET in false colour",
    ),
    Dataset(
        name="Harvard SPECT-MRI",
        folders=("spect_mri", "mri_spect"),
        modalities=("SPECT", "MRI"),
        first_in_color=True,
        layouts=(Layout(first="{split}/SPECT", second="{split}/MRI"), Layout(first="SPECT", second="MRI"), *COMMON),
        source="github.com/xianming-gu/Havard-Medical-Image-Fusion-Datasets",
        note="256x256 brain slices on exactly black ground, SPECT in false colour",
    ),
    Dataset(
        name="Harvard",
        folders=("harvard", "havard", "mydatasets", "havard_medical_image_fusion_datasets"),
        modalities=("CT, PET or SPECT", "MRI"),
        first_in_color=True,
        layouts=COMMON,
        parts=("Harvard CT-MRI", "Harvard PET-MRI", "Harvard SPECT-MRI"),
        source="github.com/xianming-gu/Havard-Medical-Image-Fusion-Datasets",
        note="the three medical sets together, as the paper's row has them",
    ),
    Dataset(
        name="GFP-PC",
        folders=("gfp_pc", "gfp"),
        modalities=("GFP", "phase contrast"),
        first_in_color=True,
        layouts=(Layout(first="GFP", second="PC"), *COMMON),
        source="data.jic.ac.uk/Gfp",
        note="358x358 plant cells; copies name the files GFP_001 and PCI_001: rename both to 001",
    ),
)
DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _DATASETS}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The pairs of one dataset that are evaluated."""

    name: str
    """The dataset's name, or the folder's where it is none of ``DATASETS``."""
    dataset: Dataset | None
    folder: Path
    split: Split
    pairs: tuple[Pair, ...]
    """Of a set in parts, names are ``part/name``."""


def select_pairs(folder: str | Path, split: Split = "test") -> Selection:
    """Return the pairs of a dataset's folder.

    Folders of the split's own, or its list, choose the pairs; a set that has neither is taken whole.

    Raises:
        InputError: no such folder, no known layout in it, a listed pair is missing, or the pairs are inconsistent.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", "give the folder of a dataset, such as data/msrs")
    dataset = dataset_of(folder)
    pairs: list[Pair] = []
    if dataset is not None and dataset.parts and find_layout(folder, dataset) is None:
        for part, place in parts_of(folder, dataset):
            found = _pairs(place, part, split)
            pairs += [dataclasses.replace(pair, name=f"{place.name}/{pair.name}") for pair in found]
        if not pairs:
            wanted = ", ".join(DATASETS[part].folders[0] for part in dataset.parts)
            raise InputError(f"{folder} holds none of the folders {wanted}", f"upfusion data check {folder}")
    else:
        pairs = _pairs(folder, dataset, split)
    name = dataset.name if dataset else folder.resolve().name
    return Selection(name=name, dataset=dataset, folder=folder, split=split, pairs=tuple(pairs))


def dataset_of(folder: Path) -> Dataset | None:
    """Return the dataset that a folder belongs to by its own name or that of the two above it."""
    resolved = folder.resolve()
    for place in (resolved, *list(resolved.parents)[:2]):
        for dataset in DATASETS.values():
            if _plain(place.name) in dataset.folders:
                return dataset
    return None


def parts_of(folder: Path, dataset: Dataset) -> Iterator[tuple[Dataset, Path]]:
    """Yield the parts of a dataset that the folder holds, with their folders."""
    places = {_plain(place.name): place for place in sorted(folder.iterdir()) if place.is_dir()}
    for name in dataset.parts:
        part = DATASETS[name]
        for known in part.folders:
            if known in places:
                yield part, places[known]


def find_layout(folder: Path, dataset: Dataset | None) -> Layout | None:
    """Return the first of the dataset's layouts (without one: the common ones) whose folders exist."""
    for layout in dataset.layouts if dataset else COMMON:
        for split in ("test", "train") if layout.by_split else ("",):
            if all(_child(folder, path.format(split=split)) for path in (layout.first, layout.second)):
                return layout
    return None


def split_folders(folder: Path, layout: Layout) -> dict[str, tuple[Path, Path]]:
    """Return the pair of image folders per split; under ``""`` where the splits share them."""
    found = {}
    for split in ("train", "test") if layout.by_split else ("",):
        first, second = (_child(folder, path.format(split=split)) for path in (layout.first, layout.second))
        if first and second:
            found[split] = (first, second)
    return found


def read_split(folder: Path, split: str) -> list[str] | None:
    """Return the names listed in ``train.txt`` or ``test.txt``, or None without that file."""
    path = folder / f"{split}.txt"
    if not path.is_file():
        return None
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _pairs(folder: Path, dataset: Dataset | None, split: Split) -> list[Pair]:
    layout = find_layout(folder, dataset)
    if layout is None:
        raise InputError(
            f"{folder}: no folders of image pairs", "it should hold vis and ir, or a and b, with files of equal names"
        )
    folders = split_folders(folder, layout)
    if layout.by_split:
        if split != "all" and split not in folders:
            raise InputError(f"{folder} has no {split} folders", f"it has {', '.join(folders)}: choose with --split")
        chosen = [folders[name] for name in folders if split in (name, "all")]
        return [pair for first, second in chosen for pair in find_pairs(first, second)]
    pairs: list[Pair] = find_pairs(*folders[""])
    lists = {name: read_split(folder, name) for name in ("train", "test")}
    if split == "all" or all(names is None for names in lists.values()):
        return pairs
    names = lists[split]
    if not names:
        raise InputError(f"{folder} lists no {split} pairs in {split}.txt", "choose another --split")
    by_name: dict[str, Pair] = {pair.name: pair for pair in pairs}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InputError(
            f"{folder / f'{split}.txt'} lists {len(missing)} pairs that are not there: {', '.join(missing[:5])}",
            f"upfusion data check {folder}",
        )
    return [by_name[name] for name in dict.fromkeys(names)]


def _child(folder: Path, relative: str) -> Path | None:
    """Return the folder below ``folder`` whose path matches without regard to case, - and _."""
    place = folder
    for step in relative.split("/"):
        matches = [child for child in sorted(place.iterdir()) if child.is_dir() and _plain(child.name) == _plain(step)]
        if not matches:
            return None
        place = matches[0]
    return place


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
