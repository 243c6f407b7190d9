#!/usr/bin/env python3
"""Makes a tree of drawings for `compare --study drawings`: emoji_tree.py OUT

Emoji of 64 x 64 pixels on white, nine classes, as OUT/{train,val,test}/CLASS/*.png: about 2060, 910 and 840 drawings by
two vendors. The class is the emoji's Unicode category. A quarter of the emoji are in `val`, another in `test`. All drawings
and variants of one code point are in one split (of a flag, of both its code points; men, women and persons, whose
professions are drawn alike, are taken for one). Near copies with other code points, such as hearts of other colours or
clock faces of other hours, are not kept together.

The drawings are in npm's packages emoji-datasource-google and emoji-datasource-twitter, version 16.0.0 (MIT for the
packages; Noto Emoji by Google, Apache-2.0; Twemoji by Twitter and others, CC BY 4.0). Needs Pillow and npm, which this
script asks for the packages; training reads the tree alone.
"""
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

from PIL import Image

VERSION = "16.0.0"
VENDORS = ["google", "twitter"]
SIDE = 64
MAN, WOMAN, PERSON = "1F468", "1F469", "1F9D1"


def package(vendor, directory):
    """Unpacks the vendor's package into `directory`, and gives where it is."""
    name = f"emoji-datasource-{vendor}@{VERSION}"
    subprocess.run(["npm", "pack", "--silent", name], cwd=directory, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(next(pathlib.Path(directory).glob("*.tgz"))) as archive:
        archive.extractall(directory, filter="data")
    return pathlib.Path(directory, "package")


def split_of(emoji):
    """The split of an emoji and all its variants."""
    codes = [PERSON if code in [MAN, WOMAN] else code for code in emoji["unified"].split("-")]
    root = "-".join(codes[:2]) if emoji["category"] == "Flags" else codes[0]
    return ["train", "train", "val", "test"][hashlib.sha256(root.encode()).digest()[0] % 4]


def on_white(file):
    drawing = Image.open(file).convert("RGBA")
    white = Image.new("RGBA", drawing.size, "white")
    return Image.alpha_composite(white, drawing).convert("RGB").resize((SIDE, SIDE))


def main(out):
    counts = {}
    for vendor in VENDORS:
        with tempfile.TemporaryDirectory() as directory:
            root = package(vendor, directory)
            for emoji in json.loads((root / "emoji.json").read_text()):
                file = root / "img" / vendor / "64" / emoji["image"]
                # Components are skin tones and hair by themselves. Not every vendor has drawn everything.
                if emoji["category"] == "Component" or not file.exists():
                    continue
                split = split_of(emoji)
                category = re.sub(r"\W+", "-", emoji["category"].lower()).strip("-")
                folder = out / split / category
                folder.mkdir(parents=True, exist_ok=True)
                on_white(file).save(folder / f"{emoji['unified'].lower()}_{vendor}.png")
                counts[split] = counts.get(split, 0) + 1
    print(counts)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
