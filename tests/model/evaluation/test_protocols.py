"""Every benchmark set in its authors' exact layout, in part, and with other folder names."""

from __future__ import annotations

from pathlib import Path

import pytest

from npr_model.datasets.folders import DatasetError
from npr_model.errors import InputError
from npr_model.evaluation import protocols, published
from npr_model.evaluation.protocols import PROTOCOLS
from tests.model.conftest import encoded, noise

CLASSES = ("0_real", "1_fake")
PROGAN = ("airplane", "bird", "tvmonitor")
# By protocol and sub-set: the folders in which the authors publish its images.
LAYOUTS: dict[str, dict[str, list[str]]] = {
    "forensynths": {
        "ProGAN": [f"progan/{name}/{label}" for name in PROGAN for label in CLASSES],
        "StyleGAN": [f"stylegan/{name}/{label}" for name in ("bedroom", "car", "cat") for label in CLASSES],
        "StyleGAN2": [f"stylegan2/{name}/{label}" for name in ("car", "church") for label in CLASSES],
        "BigGAN": [f"biggan/{label}" for label in CLASSES],
        "CycleGAN": [f"cyclegan/{name}/{label}" for name in ("apple", "zebra") for label in CLASSES],
        "StarGAN": [f"stargan/{label}" for label in CLASSES],
        "GauGAN": [f"gaugan/{label}" for label in CLASSES],
        "Deepfake": [f"deepfake/{label}" for label in CLASSES],
    },
    "gangen-detection": {
        name: [f"{name}/{label}" for label in CLASSES]
        for name in ("AttGAN", "BEGAN", "CramerGAN", "InfoMaxGAN", "MMDGAN", "RelGAN", "S3GAN", "SNGAN", "STGAN")
    },
    "diffusionforensics": {
        "ADM": [f"adm/{name}/{label}" for name in ("bedroom", "imagenet") for label in CLASSES],
        "DDPM": [f"ddpm/bedroom/{label}" for label in CLASSES],
        "IDDPM": [f"iddpm/bedroom/{label}" for label in CLASSES],
        "LDM": [f"ldm/bedroom/{label}" for label in CLASSES],
        "PNDM": [f"pndm/bedroom/{label}" for label in CLASSES],
        "VQ-Diffusion": [f"vqdiffusion/bedroom/{label}" for label in CLASSES],
        "Stable Diffusion v1": [f"sdv1/imagenet/{label}" for label in CLASSES],
        "Stable Diffusion v2": [f"sdv2/{name}/{label}" for name in ("bedroom", "celebahq") for label in CLASSES],
    },
    "universalfakedetect": {
        "DALLE": ["dalle/1_fake", "laion/0_real"],
        "Glide_100_10": ["glide_100_10/1_fake", "laion/0_real"],
        "Glide_100_27": ["glide_100_27/1_fake", "laion/0_real"],
        "Glide_50_27": ["glide_50_27/1_fake", "laion/0_real"],
        "ADM": ["guided/1_fake", "imagenet/0_real"],
        "LDM_100": ["ldm_100/1_fake", "laion/0_real"],
        "LDM_200": ["ldm_200/1_fake", "laion/0_real"],
        "LDM_200_cfg": ["ldm_200_cfg/1_fake", "laion/0_real"],
    },
    "diffusion1kstep": {
        "ADM": [f"guided-diffusion/{label}" for label in CLASSES],
        "DDPM": [f"ddpm/google-ddpm-{name}-256/{label}" for name in ("bedroom", "cat") for label in CLASSES],
        "IDDPM": [f"improved-diffusion/{label}" for label in CLASSES],
        "Midjourney": [f"midjourney/{label}" for label in CLASSES],
        "DALLE": [f"DALLE/{label}" for label in CLASSES],
    },
    "aigcdetectbenchmark": {
        "ProGAN": [f"progan/{name}/{label}" for name in PROGAN for label in CLASSES],
        "StyleGAN": [f"stylegan/car/{label}" for label in CLASSES],
        "BigGAN": [f"biggan/{label}" for label in CLASSES],
        "CycleGAN": [f"cyclegan/apple/{label}" for label in CLASSES],
        "StarGAN": [f"stargan/{label}" for label in CLASSES],
        "GauGAN": [f"gaugan/{label}" for label in CLASSES],
        "StyleGAN2": [f"stylegan2/horse/{label}" for label in CLASSES],
        "WhichFaceIsReal": [f"whichfaceisreal/{label}" for label in CLASSES],
        "ADM": [f"ADM/{label}" for label in CLASSES],
        "Glide": [f"Glide/{label}" for label in CLASSES],
        "Midjourney": [f"Midjourney/{label}" for label in CLASSES],
        "Stable Diffusion v1.4": [f"stable_diffusion_v_1_4/{label}" for label in CLASSES],
        "Stable Diffusion v1.5": [f"stable_diffusion_v_1_5/{label}" for label in CLASSES],
        "VQDM": [f"VQDM/{label}" for label in CLASSES],
        "Wukong": [f"wukong/{label}" for label in CLASSES],
        "DALLE 2": [f"DALLE2/{label}" for label in CLASSES],
    },
    "genimage": {
        name: [f"{folder}/val/{label}" for label in ("nature", "ai")]
        for name, folder in {
            "Midjourney": "Midjourney/imagenet_midjourney",
            "Stable Diffusion v1.4": "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4",
            "Stable Diffusion v1.5": "stable_diffusion_v_1_5/imagenet_ai_0424_sdv5",
            "ADM": "ADM/imagenet_ai_0508_adm",
            "GLIDE": "glide/imagenet_glide",
            "Wukong": "wukong/imagenet_ai_0424_wukong",
            "VQDM": "VQDM/imagenet_ai_0419_vqdm",
            "BigGAN": "BigGAN/imagenet_ai_0419_biggan",
        }.items()
    },
}
DATA = encoded(noise(8, 8))


def make(root: Path, folders, count: int = 2) -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / folder / f"{number}.png").write_bytes(DATA)


def all_folders(name: str) -> list[str]:
    return [folder for folders in LAYOUTS[name].values() for folder in folders]


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("place", ["", "{title}", "{title}/test", "{title}/{title}"])
def test_finds_every_sub_set(tmp_path, name, place):
    protocol = PROTOCOLS[name]
    root = tmp_path / place.format(title=protocol.title)
    make(root, all_folders(name))
    make(root, ["elsewhere/1_fake"])
    if protocol.part:  # its training part is not evaluated on
        make(root, [folder.replace("/val/", "/train/") for folder in all_folders(name)])
    benchmark = protocols.find(protocol, tmp_path)
    assert benchmark.missing == () and benchmark.unused == ("elsewhere",)
    assert [subset.name for subset in protocol.subsets] == list(LAYOUTS[name])
    for subset, folders in LAYOUTS[name].items():
        samples = [sample for sample in benchmark.samples if sample.group == subset]
        expected = {(root / folder / f"{number}.png", index_of(folder)) for folder in folders for number in range(2)}
        assert {(sample.path, sample.label) for sample in samples} == expected
        assert len(samples) == len(expected)


def index_of(folder: str) -> int:
    return int(folder.endswith(("1_fake", "ai")))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_set_of_which_half_is_missing(tmp_path, name):
    layout = LAYOUTS[name]
    kept = list(layout)[::2]
    make(tmp_path, [folder for subset in kept for folder in layout[subset]])
    benchmark = protocols.find(PROTOCOLS[name], tmp_path)
    assert list(benchmark.missing) == list(layout)[1::2]
    assert list(dict.fromkeys(sample.group for sample in benchmark.samples)) == kept


@pytest.mark.parametrize(
    ("name", "folder", "subset"),
    [
        ("forensynths", "ProGAN/cat", "ProGAN"),
        ("diffusionforensics", "guided-diffusion", "ADM"),
        ("diffusionforensics", "improved_diffusion", "IDDPM"),
        ("diffusionforensics", "sdv1_new", "Stable Diffusion v1"),
        ("diffusionforensics", "stable-diffusion-v2", "Stable Diffusion v2"),
        ("diffusionforensics", "VQDiffusion", "VQ-Diffusion"),
        ("universalfakedetect", "guided", "ADM"),
        ("universalfakedetect", "GLIDE_50_27", "Glide_50_27"),
        ("diffusion1kstep", "iddpm", "IDDPM"),
        ("genimage", "imagenet_ai_0419_vqdm/val", "VQDM"),
        ("aigcdetectbenchmark", "SDv1.4", "Stable Diffusion v1.4"),
    ],
)
def test_other_names_of_folders(tmp_path, name, folder, subset):
    labels = ("nature", "ai") if name == "genimage" else CLASSES
    make(tmp_path, [f"{folder}/{label}" for label in labels])
    assert {sample.group for sample in protocols.find(PROTOCOLS[name], tmp_path).samples} == {subset}


def test_own_reals_come_before_borrowed_ones(tmp_path):
    make(tmp_path, ["dalle/0_real", "dalle/1_fake", "laion/0_real"])
    benchmark = protocols.find(PROTOCOLS["universalfakedetect"], tmp_path)
    assert {sample.path.parent.parent.name for sample in benchmark.samples} == {"dalle"}


def test_all_of_the_paper(tmp_path):
    for protocol in protocols.choose("paper"):
        make(tmp_path / protocol.title, all_folders(protocol.name))
    sets, absent = protocols.find_all(protocols.choose("paper"), tmp_path)
    assert absent == [] and sum(len(set(s.group for s in one.samples)) for one in sets) == 38
    chosen = protocols.choose("paper")
    for path in (tmp_path / "Diffusion1kStep").rglob("*.png"):
        path.unlink()
    sets, absent = protocols.find_all(chosen, tmp_path)
    assert [protocol.name for protocol in absent] == ["diffusion1kstep"] and len(sets) == 4


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_folder_without_the_set(tmp_path, name):
    make(tmp_path, ["holiday/0_real"])
    with pytest.raises(DatasetError, match=f"has no folder of {PROTOCOLS[name].title}; its sub-sets are"):
        protocols.find(PROTOCOLS[name], tmp_path)
    with pytest.raises(DatasetError, match="has none of the folders ForenSynths"):
        protocols.find_all(protocols.choose("paper"), tmp_path)


def test_unknown_name():
    with pytest.raises(InputError, match=r"unknown benchmark 'genimag': use one of forensynths, .*genimage, paper"):
        protocols.choose("genimag")


def test_published_rows_are_those_of_the_protocols():
    for protocol in protocols.choose("paper"):
        names = {subset.name for subset in protocol.subsets}
        for (table, _), results in published.results().items():
            if table == protocol.table:
                assert set(results) == names | {published.MEAN}


def test_published_means_are_means():
    """All rows but those whose note says that the paper contradicts itself."""
    checked = 0
    for key, results in published.results().items():
        if key in published.notes():
            continue
        for name in ("accuracy", "average_precision"):
            values = [getattr(result, name) for generator, result in results.items() if generator != published.MEAN]
            if None not in values:
                checked += 1
                mean = getattr(results[published.MEAN], name)
                assert mean == pytest.approx(sum(values) / len(values), abs=0.16), (key, name)
    assert checked > 60


def test_published_tables_6_and_7():
    assert published.mean_accuracies()["NPR"] == 93.3
    assert len(published.ablation()) == 12 and published.ablation()[2, "w_1"]["Mean"].accuracy == 92.5
