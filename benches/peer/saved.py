"""Loads what the crate writes with the peers' own loaders, strictly, and compares the logits with the recorded ones.

    cargo run --release --example parity -- tests/fixtures/models/*.expect.safetensors \
        tests/fixtures/checkpoints/*.expect.safetensors --save saved
    python benches/peer/saved.py saved tests/fixtures/models tests/fixtures/checkpoints

Needs timm, transformers, open_clip_torch and torchvision (written for 1.0.31, 5.24, 3.3 and 0.29); nothing is
downloaded. A line for each file; the exit code is 1 where one does not load, or its logits are not within 1e-5.
"""

import functools
import json
import os
import shutil
import sys
import tempfile

import open_clip
import timm
import torch
import torchvision
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

MOST = 1e-5


def recorded(path):
    with safe_open(path, "pt") as f:
        return json.loads(f.metadata()["config"]), {name: f.get_tensor(name) for name in f.keys()}


def size(config):
    """The arguments of a recorded model, in timm's words."""
    if "arguments" in config:
        return dict(config["arguments"])
    c = config.get("config", config)
    c = c.get("vision_config", c)
    names = {"img_size": "image_size", "patch_size": "patch_size"}
    names |= {"embed_dim": "hidden_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads"}
    return {to: c.get(name, c.get(to)) for to, name in names.items()}


def eps(config, default):
    c = config.get("config", {})
    return c.get("vision_config", c).get("layer_norm_eps", default)


def in_timm(config):
    """A model of timm's that computes what the recorded one does."""
    classes, own = config["num_classes"], config.get("model")
    if "layout" in config:
        return of_layout(config)
    if config["peer"] == "timm" and own != "swin":
        return timm.create_model(own, num_classes=classes, **size(config))
    name = config.get("class", own)
    if name in ("SwinForImageClassification", "SwinTransformer", "swin"):
        return swin(config)
    if name == "ConvNextForImageClassification":
        c = config["config"]
        return timm.create_model("convnext_tiny", num_classes=classes, depths=c["depths"], dims=c["hidden_sizes"])
    norm = functools.partial(torch.nn.LayerNorm, eps=eps(config, 1e-6))
    own = {"num_classes": classes, "norm_layer": norm, **size(config)}
    if name == "SiglipForImageClassification":
        return timm.create_model("vit_base_patch16_siglip_gap_224", act_layer="gelu_tanh", **own)
    if name == "SiglipVisionModel":
        return timm.create_model("vit_base_patch16_siglip_224", act_layer="gelu_tanh", **own)
    if name.startswith("DeiT"):
        teacher = name.endswith("WithTeacher")
        model = timm.create_model("deit_tiny_distilled_patch16_224", **own)
        if not teacher:
            model.head_dist = None
            model.forward_head = lambda x, pre_logits=False: model.head(x[:, 0])
        return model
    if name in ("ViTForImageClassification", "ViT", "VisionTransformer"):
        return timm.create_model("vit_small_patch16_224", **own)
    if name == "ViTMAEForPreTraining":
        return timm.create_model("vit_small_patch16_224", global_pool="avg", **own)
    if name == "DINOv3ViTModel":
        return timm.create_model(
            "vit_small_patch16_dinov3_qkvb", global_pool="token", num_reg_tokens=4, num_prefix_tokens=None, **own
        )
    return None


def swin(config):
    c = config.get("arguments", config.get("config", config))
    names = {"img_size": "image_size", "patch_size": "patch_size", "embed_dim": "embed_dim", "depths": "depths"}
    names |= {"num_heads": "num_heads", "window_size": "window_size"}
    own = {to: c.get(name, c.get(to)) for to, name in names.items()}
    own = {to: value for to, value in own.items() if value is not None}
    return timm.models.swin_transformer.SwinTransformer(num_classes=config["num_classes"], **own)


def of_layout(config):
    """The same of a recorded layout, whose sizes are told in the crate's words."""
    if config["layout"] == "resnet":
        block = getattr(timm.models.resnet, config["block"])
        sides = {"layers": config["layers"], "channels": config["channels"]}
        return timm.models.resnet.ResNet(block, num_classes=config["num_classes"], **sides)
    if "swin" in config["layout"]:
        return swin(config)
    own = {name: config[name] for name in ("patch_size", "embed_dim", "depth", "num_heads", "num_classes")}
    own |= {"img_size": config["image_size"], "norm_layer": functools.partial(torch.nn.LayerNorm, eps=config["norm_eps"])}
    own |= {"act_layer": "quick_gelu"} if config["activation"] == "quick_gelu" else {}
    own |= {"init_values": 1.0} if config["layer_scale"] else {}
    own |= {"no_embed_class": not config["cls_in_pos_embed"], "pre_norm": "clip" in config["layout"]}
    own |= {"global_pool": "avg"} if config.get("global_pool") else {}
    return timm.create_model("vit_small_patch16_224", **own)


def in_transformers(config, state):
    """The class and configuration of transformers that a state saved for it is of."""
    of = size(config)
    common = {"num_labels": config["num_classes"]}
    own = config.get("model", config.get("class"))
    if config["peer"] == "transformers":
        kind = getattr(transformers, config["class"])
        c = kind.config_class(**{**config["config"], **common})
        if config["class"] == "SiglipForImageClassification":
            c.vision_config.vision_use_head = False
        return kind, c
    if own in ("convnext_tiny", "convnextv2_tiny"):
        kind, c = transformers.ConvNextForImageClassification, transformers.ConvNextConfig
        if own == "convnextv2_tiny":
            kind, c = transformers.ConvNextV2ForImageClassification, transformers.ConvNextV2Config
        return kind, c(hidden_sizes=of["dims"], depths=of["depths"], layer_norm_eps=1e-6, **common)
    if own in ("swin", "SwinTransformer"):
        c = config.get("arguments", config)
        names = {"image_size": "img_size", "patch_size": "patch_size", "embed_dim": "embed_dim", "depths": "depths"}
        names |= {"num_heads": "num_heads", "window_size": "window_size"}
        c = {to: c.get(name, c.get(to)) for to, name in names.items()}
        c = {to: value for to, value in c.items() if value is not None}
        return transformers.SwinForImageClassification, transformers.SwinConfig(**c, **common)
    if "embed_dim" not in of or of["embed_dim"] is None:
        return None, None
    vit = dict(hidden_size=of["embed_dim"], num_hidden_layers=of["depth"], num_attention_heads=of["num_heads"])
    vit |= dict(image_size=of["img_size"], patch_size=of["patch_size"], intermediate_size=4 * of["embed_dim"])
    vit |= dict(layer_norm_eps=1e-6, hidden_act="gelu")
    if own == "deit_tiny_distilled_patch16_224":
        return transformers.DeiTForImageClassificationWithTeacher, transformers.DeiTConfig(**vit, **common)
    if own == "vit_base_patch16_siglip_gap_224":
        c = transformers.SiglipConfig(vision_config={**vit, "vision_use_head": False}, **common)
        return transformers.SiglipForImageClassification, c
    return transformers.ViTForImageClassification, transformers.ViTConfig(**vit, **common)


def logits(output):
    return getattr(output, "logits", output)


def strictly(kind, config, file):
    """`from_pretrained`, where nothing is missing, left over or of another shape."""
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(file, f"{directory}/model.safetensors")
        model, info = kind.from_pretrained(directory, config=config, output_loading_info=True)
    faults = {what: names for what, names in info.items() if names}
    assert not faults, faults
    return model.eval()


def refilled(config, file, expected):
    """What the writer's own class computes of it; None where the recorded logits need a head that is not in it."""
    peer, has_head = config["peer"], not any(name.startswith("fresh/") for name in expected)
    if peer == "timm":
        model = in_timm(config).eval()
        model.load_state_dict(load_file(file), strict=True)
        return model(expected["input"])
    if peer == "torchvision":
        of = size(config)
        if config["class"] == "SwinTransformer":
            window = [config["window_size"]] * 2
            model = torchvision.models.SwinTransformer(
                [4, 4], config["embed_dim"], config["depths"], config["num_heads"], window, num_classes=9
            )
        else:
            sides = of["img_size"], of["patch_size"], of["depth"], of["num_heads"], of["embed_dim"]
            model = torchvision.models.VisionTransformer(*sides, 4 * of["embed_dim"], num_classes=9)
        model.eval().load_state_dict(load_file(file), strict=True)
        return model(expected["input"])
    kind = getattr(transformers, config["class"])
    extra = {"num_labels": config["num_classes"]} if has_head else {}
    model = strictly(kind, kind.config_class(**{**config["config"], **extra}), file)
    return logits(model(expected["input"])) if has_head else None


def in_open_clip(file, expected, config):
    """The tower below `visual` of a whole CLIP, which is loaded strictly."""
    state = load_file(file)
    width, vocabulary = state["visual.conv1.weight"].shape[0], state["token_embedding.weight"].shape[0]
    count = len({name.split(".")[3] for name in state if name.startswith("visual.transformer.resblocks.")})
    of_text = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
    patch = state["visual.conv1.weight"].shape[-1]
    vision = open_clip.CLIPVisionCfg(
        layers=count, width=width, head_width=width // 3, patch_size=patch, image_size=expected["input"].shape[-1]
    )
    text_width = state["token_embedding.weight"].shape[1]
    text = open_clip.CLIPTextCfg(
        context_length=state["positional_embedding"].shape[0],
        vocab_size=vocabulary,
        width=text_width,
        heads=2,
        layers=of_text,
    )
    quick = config.get("activation") == "quick_gelu"
    model = open_clip.CLIP(state["text_projection"].shape[1], vision, text, quick_gelu=quick).eval()
    model.load_state_dict(state, strict=True)
    model.visual.proj = None
    return model.visual(expected["input"]) @ expected["fresh/head.weight"].T + expected["fresh/head.bias"]


def load(layout, file, config, expected):
    """The logits that a file gives its peer, None where these were never recorded; a reason, as text, where no peer is."""
    if layout == "open_clip":
        return in_open_clip(file, expected, config)
    if layout == "refilled":
        return refilled(config, file, expected)
    if layout == "timm":
        model = in_timm(config)
        if model is None:
            return "no such model is made here"
        model.eval().load_state_dict(load_file(file), strict=True)
        return model(expected["input"])
    kind, c = in_transformers(config, load_file(file))
    if kind is None:
        return "no such model is made here"
    return logits(strictly(kind, c, file)(expected["input"]))


def main(directory, *folders):
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failed, compared = 0, 0
    for entry in sorted(os.listdir(directory)):
        name, layout, _ = entry.rsplit(".", 2)
        paths = [f"{folder}/{name}.expect.safetensors" for folder in folders]
        config, expected = recorded(next(path for path in paths if os.path.exists(path)))
        if config.get("layout") == "open-clip" and layout == "refilled":
            layout = "open_clip"
        elif "layout" in config and (layout != "timm" or any(name.startswith("fresh/") for name in expected)):
            continue
        try:
            with torch.no_grad():
                got = load(layout, f"{directory}/{entry}", config, expected)
        except Exception as error:
            failed += 1
            print(f"{entry}: {type(error).__name__} {str(error)[:500]}")
            continue
        if isinstance(got, str):
            print(f"{entry}: {got}")
            continue
        compared += 1
        if got is None:
            print(f"{entry}: loads, strictly")
            continue
        logits = expected["logits_eval"]
        error = ((got - logits).norm() / logits.norm()).item()
        failed += not error <= MOST
        print(f"{entry}: loads, strictly; logits within {error:.1e}{'' if error <= MOST else ' FAILS'}")
    print(f"{compared} loaded, {failed} failed")
    return 1 if failed or not compared else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
