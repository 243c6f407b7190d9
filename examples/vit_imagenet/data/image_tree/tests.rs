//! Directories of images, made by the tests.

mod batches;
mod formats;
mod listing;
mod unreadable;

use std::fs;

use image::{DynamicImage, GrayImage, Luma, RgbImage, RgbaImage};
use masksub::augment::Normalize;

use super::*;
use crate::data::augment::{Augment, Crop, Interpolation};

fn settings(image_size: usize, channels: usize) -> Settings {
    Settings {
        image_size,
        channels,
        normalize: Normalize::IMAGENET,
        interpolation: Interpolation::Bicubic,
        crop_pct: 1.0,
        augment: Augment {
            crop: Crop::Resized,
            flip: 0.5,
            ..Augment::NONE
        },
    }
}

fn transform(image_size: usize, channels: usize) -> Transform {
    Transform::new(settings(image_size, channels)).unwrap()
}

fn open(root: &Path, unreadable: Unreadable, threads: usize) -> anyhow::Result<ImageTree> {
    ImageTree::open(
        root,
        "val",
        transform(16, 3),
        unreadable,
        Portion::default(),
        threads,
        &Device::Cpu,
    )
}

fn save(image: impl Into<DynamicImage>, path: PathBuf) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.into().save(path).unwrap();
}

fn noise(width: u32, height: u32, seed: u8) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let at = |k: u32| (x * k + y * (k + 3) + seed as u32 * 37) as u8;
        image::Rgb([at(5), at(11), at(23)])
    })
}

fn grey(side: u32, level: u8) -> GrayImage {
    GrayImage::from_pixel(side, side, Luma([level]))
}

/// Two classes with six training and two validation images: all three formats, several sizes, grey and alpha.
fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    save(noise(40, 30, 1), at("train/cat/a.JPEG"));
    save(noise(20, 50, 2), at("train/cat/b.png"));
    save(noise(33, 33, 3), at("train/cat/deeper/c.webp"));
    save(grey(24, 200), at("train/dog/a.jpg"));
    save(
        RgbaImage::from_pixel(9, 70, image::Rgba([200, 100, 50, 10])),
        at("train/dog/b.PNG"),
    );
    save(grey(5, 100), at("train/dog/c.webp"));
    save(grey(16, 255), at("val/cat/white.png"));
    save(noise(18, 16, 4), at("val/dog/d.png"));
    fs::write(at("train/dog/notes.txt"), "no image").unwrap();
    fs::write(at("train/README.md"), "no class").unwrap();
    fs::create_dir(at("train/.cache")).unwrap();
    root
}

type Contents = Vec<(Vec<usize>, Vec<f32>, Vec<u32>)>;

fn contents(batches: Batches) -> Contents {
    let batch = |batch: anyhow::Result<Batch>| {
        let Batch { images, labels, .. } = batch.unwrap();
        (
            images.dims().to_vec(),
            images.flatten_all().unwrap().to_vec1().unwrap(),
            labels.to_vec1().unwrap(),
        )
    };
    batches.map(batch).collect()
}

/// An empty file, one that is no image, and one of each format that is cut off.
fn spoil(root: &Path) -> [PathBuf; 5] {
    let bad = [
        "cat/empty.jpg",
        "dog/text.png",
        "dog/cut.jpg",
        "cat/cut.png",
        "cat/cut.webp",
    ];
    let bad = bad.map(|path| root.join("train").join(path));
    fs::write(&bad[0], "").unwrap();
    fs::write(&bad[1], "hello").unwrap();
    for path in &bad[2..] {
        save(noise(90, 90, 9), path.clone());
        let whole = fs::read(path).unwrap();
        fs::write(path, &whole[..whole.len() - whole.len() / 8]).unwrap();
    }
    bad
}
