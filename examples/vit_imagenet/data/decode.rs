//! From an image file to its pixels.
//!
//! What a user sees on the screen is what a model gets: the picture is turned as its EXIF orientation says, which torchvision
//! and timm do not do. Otherwise as Pillow's `convert("RGB")`: transparency is dropped, grey is repeated, CMYK is mixed.

use anyhow::{ensure, Context, Result};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use masksub::augment::Image;
use std::cell::RefCell;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Mutex;
use zune_jpeg::zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};
use zune_jpeg::JpegDecoder;

/// Image of the largest image that is read: Pillow's limit, beyond which it takes a file for a decompression bomb.
const MOST_PIXELS: usize = 178_956_970;

/// Images with more pixels than that are decoded one after another, so that as many of them as there are threads do not
/// fill the memory. A camera's photograph is smaller.
const MANY_PIXELS: usize = 1 << 24;
static LARGE: Mutex<()> = Mutex::new(());

thread_local! {
    // A file's bytes, and an image's pixels. Fresh memory costs the system as much as a tenth of the decoding.
    static FILE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads a file; the format is told by its content, not by its name.
pub fn decode(path: &Path) -> Result<Image> {
    let mut file = File::open(path)?;
    FILE.with_borrow_mut(|bytes| {
        bytes.clear();
        bytes.shrink_to(MANY_PIXELS);
        file.read_to_end(bytes)?;
        ensure!(!bytes.is_empty(), "the file is empty");
        if bytes.starts_with(&[0xff, 0xd8]) {
            jpeg(bytes)
        } else {
            other(bytes)
        }
    })
}

/// Takes back an image that is done with: this thread's next one is decoded into its memory.
pub fn recycle(image: Image) {
    let pixels = image.into_raw();
    if pixels.capacity() <= 3 * MANY_PIXELS {
        SPARE.set(pixels);
    }
}

/// Makes room for an image of that size: an error if it is too large, a wait if another large one is being decoded.
fn admit(width: usize, height: usize) -> Result<Option<std::sync::MutexGuard<'static, ()>>> {
    let pixels = width * height;
    ensure!(
        pixels <= MOST_PIXELS,
        "it has {width}x{height} pixels, which is more than the {MOST_PIXELS} that are read"
    );
    let alone = || LARGE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok((pixels > MANY_PIXELS).then(alone))
}

fn jpeg(bytes: &mut Vec<u8>) -> Result<Image> {
    // The decoder takes a JPEG that was cut off for a whole one and leaves the rest of it grey.
    if jpeg_ends(bytes) {
        jpeg_pixels(bytes)
    } else {
        jpeg_without_end(bytes)
    }
}

/// A JPEG with something else in the place of its end marker. Where all of its data is there, what comes behind it has no
/// part in the picture; where some is missing, it has. Of several scans whole ones may be missing, which nothing tells.
fn jpeg_without_end(bytes: &mut Vec<u8>) -> Result<Image> {
    const CUT: &str = "the JPEG is cut off";
    // As much as the marker: the data of a file that was cut off before it ends here.
    let length = bytes.len().saturating_sub(2);
    ensure!(one_scan(bytes), CUT);
    let mut followed_by = |filler: u8| {
        bytes.truncate(length);
        bytes.extend([filler; 64]);
        bytes.extend([0xff, 0xd9]);
        jpeg_pixels(bytes)
    };
    let (image, other) = (followed_by(0x00)?, followed_by(0xaa)?);
    ensure!(image.as_raw() == other.as_raw(), CUT);
    Ok(image)
}

fn jpeg_pixels(bytes: &[u8]) -> Result<Image> {
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(u16::MAX as usize)
        .set_max_height(u16::MAX as usize)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers()?;
    let (width, height) = decoder.dimensions().context("it has no size")?;
    let _alone = admit(width, height)?;
    let size = width * height * 3;
    ensure!(
        decoder.output_buffer_size() == Some(size),
        "its colours cannot be converted to RGB"
    );
    let mut pixels = SPARE.take();
    pixels.resize(size, 0);
    decoder.decode_into(&mut pixels)?;
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let image = Image::from_raw(width, height, pixels)?;
    turned(image, orientation.unwrap_or(Orientation::NoTransforms))
}

fn other(bytes: &[u8]) -> Result<Image> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    let _alone = admit(width as usize, height as usize)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(8 * MOST_PIXELS as u64); // sixteen bits in four channels
    decoder.set_limits(limits)?;
    let orientation = decoder.orientation()?;
    let image = DynamicImage::from_decoder(decoder)?;
    turned(converted(image)?, orientation)
}

fn converted(image: DynamicImage) -> Result<Image> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(Image::from_raw(width, height, image.into_rgb8().into_raw())?)
}

fn turned(image: Image, orientation: Orientation) -> Result<Image> {
    if orientation == Orientation::NoTransforms {
        return Ok(image);
    }
    let rgb = RgbImage::from_raw(image.width() as u32, image.height() as u32, image.into_raw());
    let mut image = DynamicImage::from(rgb.context("fewer pixels than it says")?);
    image.apply_orientation(orientation);
    converted(image)
}

/// Segments of a JPEG before its image data, and where that begins: marker, contents.
fn segments(bytes: &[u8]) -> (Vec<(u8, &[u8])>, Option<usize>) {
    let (mut at, mut segments) = (2, Vec::new()); // behind the start marker
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        if marker == 0xff {
            at += 1; // a fill byte
            continue;
        }
        let end = at + 2 + u16::from_be_bytes([high, low]) as usize;
        segments.push((marker, bytes.get(at + 4..end).unwrap_or_default()));
        if marker == 0xda {
            return (segments, Some(at));
        }
        at = end;
    }
    (segments, None)
}

/// True where an end marker (FF D9) follows the start of the image data (FF DA). Segments before that, with a thumbnail in
/// one of them maybe, are passed over.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let (_, data) = segments(bytes);
    data.is_some_and(|at| bytes[at..].windows(2).rev().any(|pair| pair == [0xff, 0xd9]))
}

/// True where the first scan has all there is of all components: the JPEG is sequential and interleaved.
fn one_scan(bytes: &[u8]) -> bool {
    let (segments, _) = segments(bytes);
    let frame = segments.iter().find(|(marker, _)| matches!(marker, 0xc0..=0xc1));
    let components = frame.and_then(|(_, frame)| frame.get(5));
    let scan = segments.iter().find(|(marker, _)| *marker == 0xda);
    components.is_some() && components == scan.and_then(|(_, scan)| scan.first())
}

#[cfg(test)]
mod tests;
