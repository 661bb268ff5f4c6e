#!/usr/bin/env python3
"""Writes images/: small synthetic images, and the floats that transformers and timm, on Pillow, make of them.

    pip install -r scripts/requirements.txt pillow==12.3.0 torchvision==0.29.2 timm==1.0.31

cases.json names for every case the image and what is in the checkpoint's configuration; expected.safetensors has the
result, [3, height, width] in float32. Every image is opened with convert("RGB") first, whatever its mode, so transparency
is dropped. Pillow 13 resizes some tall images rows first; these are the levels of Pillow 12, as of those before it.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from timm.data import create_transform, resolve_data_config
from torchvision.transforms.functional import center_crop
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

OUT = Path(__file__).parent / "images"
PROCESSORS = {
    "ViT": ViTImageProcessorPil,
    "DeiT": DeiTImageProcessorPil,
    "CLIP": CLIPImageProcessorPil,
    "Bit": BitImageProcessorPil,
    "Siglip": SiglipImageProcessorPil,
}
random = np.random.default_rng(1)


def picture(height: int, width: int) -> np.ndarray:
    """Gradients, an edge and noise, [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    levels = np.stack([255 * x / width, 255 * y / height, 255 * ((x + y) // 7 % 2)], -1)
    return np.clip(levels + random.normal(0, 25, levels.shape), 0, 255).astype(np.uint8)


def images() -> None:
    rgb = Image.fromarray(picture(37, 53))
    alpha = Image.fromarray(random.integers(0, 256, (37, 53), dtype=np.uint8))
    rgb.save(OUT / "rgb.png")
    Image.fromarray(picture(45, 29)).save(OUT / "tall.png")
    Image.fromarray(picture(430, 4)).save(OUT / "ribbon.png")
    Image.fromarray(picture(9, 11)).save(OUT / "tiny.png")
    rgb.convert("L").save(OUT / "grey.png")
    rgb.convert("1").save(OUT / "two-levels.png")
    rgb.quantize(16).save(OUT / "palette.png")
    Image.merge("RGBA", [*rgb.split(), alpha]).save(OUT / "alpha.png")
    Image.merge("LA", [rgb.convert("L"), alpha]).save(OUT / "grey-alpha.png")
    Image.fromarray(random.integers(0, 400, (20, 31), dtype=np.uint16)).save(OUT / "grey-16.png")
    orientation = Image.Exif()
    orientation[0x0112] = 6
    rgb.save(OUT / "420.jpg", quality=85, subsampling="4:2:0", exif=orientation)
    rgb.save(OUT / "422.jpg", quality=70, subsampling="4:2:2")
    rgb.save(OUT / "444-progressive.jpg", quality=90, subsampling="4:4:4", progressive=True)
    rgb.save(OUT / "420-progressive.jpg", quality=60, subsampling="4:2:0", progressive=True)
    rgb.convert("L").save(OUT / "grey.jpg", quality=80)
    rgb.convert("CMYK").save(OUT / "cmyk.jpg", quality=80)


def transformers(config: dict, image: Image.Image) -> np.ndarray:
    name = config["image_processor_type"].removesuffix("ImageProcessor")
    settings = {key: value for key, value in config.items() if key != "image_processor_type"}
    if name == "ViT" and settings.get("do_center_crop"):
        image, settings = cropped_as_timm(image, settings)
    return np.asarray(PROCESSORS[name](**settings)(image)["pixel_values"][0], dtype=np.float32)


def cropped_as_timm(image: Image.Image, settings: dict) -> tuple[Image.Image, dict]:
    """Resized and cropped, and what is left to do: ViT crops as timm does, where its weights come from."""
    if settings.get("do_resize", True):
        (short, long), edge = sorted(image.size), settings["size"]["shortest_edge"]
        image = image.resize([edge if side == short else int(edge * long / short) for side in image.size],
                             settings["resample"])
    crop = settings["crop_size"]
    image = center_crop(image, [crop["height"], crop["width"]])
    return image, {**settings, "do_resize": False, "do_center_crop": False}


def timm(config: dict, image: Image.Image) -> np.ndarray:
    transform = create_transform(**resolve_data_config(pretrained_cfg=config))
    return transform(image).numpy()


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    images()
    small = {"height": 12, "width": 10}
    vit = {"image_processor_type": "ViTImageProcessor", "size": small}
    plain = {"image_processor_type": "ViTImageProcessor", "do_resize": False, "do_center_crop": True,
             "crop_size": {"height": 20, "width": 31}}
    shortest = {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 17}, "do_center_crop": True,
                "crop_size": {"height": 14, "width": 14}, "resample": 3}
    clip = {"image_processor_type": "CLIPImageProcessor", "size": 15, "crop_size": 12}
    timm_cfg = {"input_size": [3, 14, 14], "interpolation": "bicubic", "crop_pct": 0.9}
    cases = [(f"decode {path.name}", path.name, plain) for path in sorted(OUT.iterdir())]
    cases += [(f"resample {code}", "rgb.png", {**vit, "resample": code}) for code in range(4)]
    cases += [(f"enlarged {code}", "tiny.png", {**vit, "size": {"height": 25, "width": 18}, "resample": code})
              for code in range(4)]
    cases += [
        ("one side only", "rgb.png", {**vit, "size": {"height": 37, "width": 20}}),
        ("shortest edge, wide", "rgb.png", shortest),
        ("shortest edge, tall", "tall.png", shortest),
        ("ribbon", "ribbon.png", {**vit, "size": {"height": 16, "width": 7}}),
        ("padded", "tiny.png", {**plain, "crop_size": {"height": 16, "width": 6}}),
        ("a number for both sides", "tall.png", {**vit, "size": 13}),
        ("not normalised", "420.jpg", {**vit, "do_normalize": False}),
        ("not rescaled", "420.jpg", {**vit, "do_rescale": False}),
        ("other factor", "420.jpg", {**vit, "rescale_factor": 0.01, "image_mean": [0.1, 0.2, 0.3],
                                     "image_std": [0.4, 0.5, 0.6]}),
        ("DeiT", "422.jpg", {"image_processor_type": "DeiTImageProcessor", "size": 18, "crop_size": 15}),
        ("CLIP", "tall.png", clip),
        ("Bit", "rgb.png", {**clip, "image_processor_type": "BitImageProcessor"}),
        ("Siglip", "420.jpg", {"image_processor_type": "SiglipImageProcessor", "size": small}),
        ("timm", "rgb.png", timm_cfg),
        ("timm, tall", "tall.png", timm_cfg),
        ("timm, odd", "420.jpg", {**timm_cfg, "crop_pct": 0.8, "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3],
                                  "std": [0.2, 0.3, 0.4]}),
        ("timm, padded", "tall.png", {**timm_cfg, "crop_pct": 1.2}),
        ("timm, squash", "rgb.png", {**timm_cfg, "input_size": [3, 14, 11], "crop_mode": "squash"}),
    ]
    expected, listing = {}, []
    for name, file, config in cases:
        image = Image.open(OUT / file).convert("RGB")
        run = transformers if "image_processor_type" in config else timm
        expected[name] = np.ascontiguousarray(run(config, image))
        assert expected[name].dtype == np.float32
        listing.append({"name": name, "image": file, "config": config})
    save_file(expected, OUT / "expected.safetensors")
    lines = ",\n".join(json.dumps(case) for case in listing)
    (OUT / "cases.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
