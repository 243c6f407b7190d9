use super::*;
use image::{GrayImage, ImageBuffer, Luma, LumaA, Rgb, Rgba};
use std::path::PathBuf;

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn save(&self, name: &str, image: impl Into<DynamicImage>) -> PathBuf {
        image.into().save(self.path(name)).unwrap();
        self.path(name)
    }
}

fn error(path: &Path) -> String {
    format!("{:#}", decode(path).unwrap_err())
}

/// Red above, blue below, and the right half of each darker.
fn quarters(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let level = if x < width / 2 { 240 } else { 120 };
        if y < height / 2 {
            Rgb([level, 0, 0])
        } else {
            Rgb([0, 0, level])
        }
    })
}

/// The colours of the middles of the four quarters, row by row.
fn corners(image: &Image) -> [[u8; 3]; 4] {
    let at = |x: usize, y: usize| {
        let start = 3 * (y * image.height() / 4 * image.width() + x * image.width() / 4);
        [0, 1, 2].map(|c| image.as_raw()[start + c])
    };
    [at(1, 1), at(3, 1), at(1, 3), at(3, 3)]
}

fn close(ours: [[u8; 3]; 4], expected: [[u8; 3]; 4]) -> bool {
    let pairs = ours.as_flattened().iter().zip(expected.as_flattened());
    pairs.into_iter().all(|(a, b)| a.abs_diff(*b) <= 4)
}

const QUARTERS: [[u8; 3]; 4] = [[240, 0, 0], [120, 0, 0], [0, 0, 240], [0, 0, 120]];

/// `jpeg` with an EXIF segment that says `orientation`.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut tiff = b"Exif\0\0MM\0*\0\0\0\x08\0\x01".to_vec();
    tiff.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0]);
    let length = (tiff.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &tiff, &jpeg[2..]].concat()
}

// The eight orientations by what they mean: which quarter of the stored picture is seen where.
#[test]
fn pictures_are_turned_as_exif_says() {
    let files = Files::new();
    let stored = std::fs::read(files.save("stored.jpg", quarters(64, 32))).unwrap();
    for (orientation, seen) in [
        (1, [0, 1, 2, 3]),
        (2, [1, 0, 3, 2]),
        (3, [3, 2, 1, 0]),
        (4, [2, 3, 0, 1]),
        (5, [0, 2, 1, 3]),
        (6, [2, 0, 3, 1]),
        (7, [3, 1, 2, 0]),
        (8, [1, 3, 0, 2]),
    ] {
        let image = decode(&files.write("turned.jpg", &with_orientation(&stored, orientation))).unwrap();
        let size = if orientation < 5 { (64, 32) } else { (32, 64) };
        assert_eq!((image.width(), image.height()), size, "orientation {orientation}");
        let expected = seen.map(|quarter| QUARTERS[quarter]);
        assert!(close(corners(&image), expected), "{orientation}: {:?}", corners(&image));
    }
    // No orientation at all, or one that does not exist.
    for odd in [0, 9] {
        let image = decode(&files.write("odd.jpg", &with_orientation(&stored, odd))).unwrap();
        assert!(close(corners(&image), QUARTERS));
    }
}

// Pillow 13 made the file (with Adobe's marker, hence inverted inks) and read these colours from it.
#[test]
fn cmyk_is_mixed_as_pillow_does() {
    let files = Files::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cmyk.jpg");
    let path = files.write("cmyk.jpg", &std::fs::read(fixture).unwrap());
    let expected = [[255, 255, 255], [0, 255, 255], [225, 49, 137], [124, 130, 8]];
    let ours = corners(&decode(&path).unwrap());
    assert!(close(ours, expected), "{ours:?}");
}

#[test]
fn grey_is_repeated_and_transparency_dropped() {
    let files = Files::new();
    let mean = |path: &Path| {
        let image = decode(path).unwrap();
        assert_eq!(image.as_raw().len(), image.width() * image.height() * 3);
        [0, 1, 2].map(|c| image.as_raw()[c])
    };
    let grey = GrayImage::from_pixel(17, 9, Luma([77]));
    for name in ["grey.jpg", "grey.png", "grey.webp"] {
        assert_eq!(mean(&files.save(name, grey.clone())), [77; 3], "{name}");
    }
    let clear = ImageBuffer::from_pixel(5, 4, Rgba([200u8, 100, 50, 0]));
    assert_eq!(mean(&files.save("clear.png", clear)), [200, 100, 50]);
    let clear = ImageBuffer::from_pixel(5, 4, LumaA([90u8, 3]));
    assert_eq!(mean(&files.save("clear-grey.png", clear)), [90; 3]);
    let deep = ImageBuffer::from_pixel(5, 4, Luma([0x8080u16]));
    assert_eq!(mean(&files.save("deep.png", deep)), [0x80; 3]);
    let deep = ImageBuffer::from_pixel(5, 4, Rgb([0xffffu16, 0x0101, 0]));
    assert_eq!(mean(&files.save("deep-colour.png", deep)), [255, 1, 0]);
}

#[test]
fn the_content_tells_the_format() {
    let files = Files::new();
    let png = std::fs::read(files.save("quarters.png", quarters(16, 16))).unwrap();
    assert_eq!(corners(&decode(&files.write("named.jpg", &png)).unwrap()), QUARTERS);
}

#[test]
fn what_is_no_whole_image_says_why() {
    let files = Files::new();
    assert_eq!(error(&files.write("empty.jpg", b"")), "the file is empty");
    let jpeg = std::fs::read(files.save("whole.jpg", quarters(90, 90))).unwrap();
    for kept in [jpeg.len() - 2, jpeg.len() / 2, 300, 2] {
        assert_eq!(
            error(&files.write("cut.jpg", &jpeg[..kept])),
            "the JPEG is cut off",
            "{kept}"
        );
    }
    let png = std::fs::read(files.save("whole.png", quarters(90, 90))).unwrap();
    error(&files.write("cut.png", &png[..png.len() / 2]));
    error(&files.write("text.png", b"hello"));
    assert!(error(&files.path("nowhere.jpg")).contains("o such file"));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(files.path("circle.jpg"), files.path("circle.jpg")).unwrap();
        assert!(error(&files.path("circle.jpg")).contains("symbolic links"));
    }
}

// Phones write such: all of the data, no end marker, and something else behind it. Pillow decodes it.
#[test]
fn a_trailer_in_the_place_of_the_end_is_none_of_the_picture() {
    const PHONE: &[u8] = include_bytes!("no_eoi_trailer.jpg");
    let files = Files::new();
    let image = decode(&files.write("phone.jpg", PHONE)).unwrap();
    let ended = decode(&files.write("ended.jpg", &[PHONE, &[0xff, 0xd9]].concat())).unwrap();
    assert_eq!(image, ended);
    let jpeg = std::fs::read(files.save("whole.jpg", quarters(90, 90))).unwrap();
    let whole = decode(&files.path("whole.jpg")).unwrap();
    let data = &jpeg[..jpeg.len() - 2];
    let other = |n: usize| [&data[..data.len() - n], &[0x17; 40]].concat();
    assert_eq!(decode(&files.write("other.jpg", &other(0))).unwrap(), whole);
    for n in 0..data.len() - 650 {
        assert_eq!(
            error(&files.write("cut.jpg", &data[..data.len() - n])),
            "the JPEG is cut off",
            "{n}"
        );
    }
    // Later scans may be missing, too.
    let mut progressive = PHONE.to_vec();
    let frame = progressive
        .windows(2)
        .position(|marker| marker == [0xff, 0xc0])
        .unwrap();
    progressive[frame + 1] = 0xc2;
    assert_eq!(
        error(&files.write("progressive.jpg", &progressive)),
        "the JPEG is cut off"
    );
}

// A thumbnail in the EXIF segment has an end marker of its own.
#[test]
fn a_thumbnail_does_not_end_a_jpeg() {
    let files = Files::new();
    let jpeg = std::fs::read(files.save("whole.jpg", quarters(90, 90))).unwrap();
    let thumbnail = std::fs::read(files.save("small.jpg", quarters(8, 8))).unwrap();
    let length = (thumbnail.len() as u16 + 2).to_be_bytes();
    let both = [&jpeg[..2], &[0xff, 0xe1], &length, &thumbnail, &jpeg[2..]].concat();
    assert!(decode(&files.write("both.jpg", &both)).is_ok());
    assert_eq!(
        error(&files.write("cut.jpg", &both[..both.len() - 40])),
        "the JPEG is cut off"
    );
}

#[test]
fn what_was_decoded_before_does_not_shine_through() {
    let files = Files::new();
    let (small, large) = (
        files.save("small.jpg", quarters(20, 20)),
        files.save("large.jpg", GrayImage::from_pixel(90, 90, Luma([200]))),
    );
    let fresh = decode(&small).unwrap();
    recycle(decode(&large).unwrap());
    assert_eq!(decode(&small).unwrap(), fresh);
}

#[test]
fn fifty_megapixels_are_read_and_a_bomb_is_not() {
    let files = Files::new();
    let large = files.save("large.jpg", GrayImage::from_pixel(8192, 6144, Luma([50])));
    let image = decode(&large).unwrap();
    assert_eq!((image.width(), image.height()), (8192, 6144));
    assert!(image.as_raw().iter().all(|&v| v == 50));
    // 65000 x 65000 in a header of a few bytes.
    let mut bomb = std::fs::read(files.save("bomb.jpg", GrayImage::from_pixel(8, 8, Luma([0])))).unwrap();
    let frame = bomb.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    bomb[frame + 5..frame + 9].copy_from_slice(&[65000u16.to_be_bytes(); 2].concat());
    let message = error(&files.write("bomb.jpg", &bomb));
    assert_eq!(
        message,
        "it has 65000x65000 pixels, which is more than the 178956970 that are read"
    );
}
