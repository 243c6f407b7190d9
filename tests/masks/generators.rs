//! Generators as objects, and the masks that every platform must draw.

use std::sync::Arc;

use masksub::{BlockMasking, Grid, Mask, MaskGenerator, MaskRatio, RandomMasking, Seed};

use super::key;

#[test]
fn generators_are_objects() {
    let generators: [Box<dyn MaskGenerator>; 2] = [
        Box::new(RandomMasking::new(0.5).unwrap()),
        Box::new(BlockMasking::new(0.5, 2).unwrap()),
    ];
    for generator in generators {
        // Pointers to one are generators themselves.
        fn through<G: MaskGenerator>(generator: G) -> Mask {
            generator.generate(2, Grid::new(4, 4), key(1)).unwrap()
        }
        let direct = generator.generate(2, Grid::new(4, 4), key(1)).unwrap();
        assert_eq!(through(&generator), direct);
        assert_eq!(through(Arc::<dyn MaskGenerator>::from(generator)), direct);
    }
}

// Recorded on x86-64 Linux: any platform and any release must draw the same masks.
#[test]
fn masks_are_portable() {
    let rows = |mask: Mask| mask.rows().map(<[u32]>::to_vec).collect::<Vec<_>>();
    let key = Seed::new(2306).at(11339);
    let kept = RandomMasking::new(0.75)
        .unwrap()
        .generate(2, Grid::new(4, 4), key)
        .unwrap();
    let dropped = RandomMasking::new(0.25)
        .unwrap()
        .generate(2, Grid::new(3, 4), key)
        .unwrap();
    let blocks = BlockMasking::new(0.5, 2)
        .unwrap()
        .generate(1, Grid::new(4, 4), key)
        .unwrap();
    let drawn = MaskRatio::drawn(rand_distr::Uniform::new(0.0, 1.0).unwrap());
    assert_eq!(rows(kept), [[5, 8, 14, 15], [0, 5, 8, 13]]);
    assert_eq!(
        rows(dropped),
        [[0, 1, 2, 3, 5, 7, 8, 9, 10], [1, 2, 3, 4, 5, 7, 8, 9, 11]]
    );
    assert_eq!(rows(blocks), [[2, 3, 6, 7, 10, 11, 14, 15]]);
    assert_eq!(drawn.at(key).unwrap(), 0.35670143185428316);
}
