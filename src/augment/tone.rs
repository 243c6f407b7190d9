//! Operations on each channel of each pixel alone: solarize, posterize, invert, and two that look at the histogram
//! first.

use super::image::{Image, CHANNELS};
use super::simd::vectorized;

/// Inverts what is at least `threshold`; 256 changes nothing.
pub(super) fn solarize(image: &mut Image, threshold: u32) {
    // No value reaches 256.
    if let Ok(threshold) = u8::try_from(threshold) {
        map(
            image,
            #[inline(always)]
            |v| if v < threshold { v } else { 255 - v },
        );
    }
}

/// Adds `add` to what is below `threshold`.
pub(super) fn solarize_add(image: &mut Image, add: u8, threshold: u32) {
    map(image, |v| {
        if u32::from(v) < threshold {
            v.saturating_add(add)
        } else {
            v
        }
    });
}

/// Keeps the `bits` highest bits.
pub(super) fn posterize(image: &mut Image, bits: u32) {
    let mask = !(0xffu32 >> bits.min(8)) as u8;
    map(
        image,
        #[inline(always)]
        |v| v & mask,
    );
}

/// Inverts all values.
pub(super) fn invert(image: &mut Image) {
    map(
        image,
        #[inline(always)]
        |v| 255 - v,
    );
}

/// Stretches each channel so that its darkest value becomes 0 and its brightest 255.
pub(super) fn auto_contrast(image: &mut Image) {
    map_by_histogram(image, |histogram| {
        let lowest = histogram.iter().position(|&n| n > 0)?;
        let highest = histogram.iter().rposition(|&n| n > 0)?;
        let scale = 255.0 / (highest > lowest).then_some(highest - lowest)? as f64;
        let offset = -(lowest as f64) * scale;
        Some(std::array::from_fn(|v| (v as f64 * scale + offset) as u8)) // truncated and saturated
    });
}

/// Spreads each channel's values so that equally many fall into equal intervals.
pub(super) fn equalize(image: &mut Image) {
    map_by_histogram(image, |histogram| {
        let brightest = *histogram.iter().rfind(|&&n| n > 0)?;
        let step = (histogram.iter().sum::<u32>() - brightest) / 255;
        let mut below = (step > 0).then_some(step / 2)?;
        Some(std::array::from_fn(|v| {
            let level = (below / step).min(255) as u8;
            below += histogram[v];
            level
        }))
    });
}

#[inline(always)]
pub(super) fn map(image: &mut Image, f: impl Fn(u8) -> u8) {
    vectorized(
        #[inline(always)]
        || image.pixels.iter_mut().for_each(|v| *v = f(*v)),
    );
}

/// Each channel through the table that `table` makes of its histogram; left alone where there is none.
fn map_by_histogram(image: &mut Image, table: impl Fn(&[u32; 256]) -> Option<[u8; 256]>) {
    let (pixels, _) = image.pixels.as_chunks_mut::<CHANNELS>();
    let mut histograms = [[0u32; 256]; CHANNELS];
    for pixel in pixels.iter() {
        for (histogram, &v) in histograms.iter_mut().zip(pixel) {
            histogram[v as usize] += 1;
        }
    }
    let identity = std::array::from_fn(|v| v as u8);
    let tables = histograms.map(|histogram| table(&histogram).unwrap_or(identity));
    for pixel in pixels {
        for (table, v) in tables.iter().zip(pixel) {
            *v = table[*v as usize];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(pixels: Vec<u8>) -> Image {
        super::super::testing::image(pixels.len() / 3, 1, pixels)
    }

    proptest! {
        // Of three channels that are alike, hence one channel three times.
        #[test]
        fn auto_contrast_reaches_both_ends_and_keeps_the_order(levels in prop::collection::vec(any::<u8>(), 2..60)) {
            let mut stretched = image(levels.iter().flat_map(|&v| [v; 3]).collect());
            auto_contrast(&mut stretched);
            let after: Vec<u8> = stretched.pixels.iter().step_by(3).copied().collect();
            let distinct = levels.iter().any(|&v| v != levels[0]);
            if distinct {
                // A truncated 254.99... is as far as rounding allows.
                prop_assert!(after.iter().min() == Some(&0) && *after.iter().max().unwrap() >= 254);
            } else {
                prop_assert_eq!(&after, &levels);
            }
            for i in 0..levels.len() {
                for j in 0..levels.len() {
                    prop_assert!(levels[i] > levels[j] || after[i] <= after[j]);
                }
            }
        }

        #[test]
        fn equalize_keeps_the_order(levels in prop::collection::vec(any::<u8>(), 300..1500)) {
            let mut equal = image(levels.iter().flat_map(|&v| [v; 3]).collect());
            equalize(&mut equal);
            let mut pairs: Vec<(u8, u8)> =
                levels.iter().copied().zip(equal.pixels.iter().step_by(3).copied()).collect();
            pairs.sort_unstable();
            prop_assert!(pairs.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        }
    }

    #[test]
    fn the_ends_of_every_range_are_what_they_say() {
        let all: Vec<u8> = (0..=255).flat_map(|v| [v; 3]).collect();
        let after = |f: &dyn Fn(&mut Image)| {
            let mut changed = image(all.clone());
            f(&mut changed);
            changed.pixels
        };
        assert_eq!(after(&|i| solarize(i, 256)), all);
        assert_eq!(after(&|i| solarize(i, 0)), after(&invert));
        assert_eq!(after(&|i| posterize(i, 8)), all);
        assert!(after(&|i| posterize(i, 0)).iter().all(|&v| v == 0));
        assert_eq!(after(&|i| solarize_add(i, 0, 128)), all);
        assert_eq!(after(&|i| solarize_add(i, 200, 256))[3 * 100], 255);
        // Every value once: nothing to spread.
        assert_eq!(after(&equalize), all);
        // A flat picture has nothing to stretch.
        let mut flat = image(vec![7; 30]);
        auto_contrast(&mut flat);
        equalize(&mut flat);
        assert_eq!(flat.pixels, [7; 30]);
    }
}
