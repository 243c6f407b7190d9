//! Messages on six topics, made up of words in templates: numbers of sentences and words differ, and so does how much of
//! a message is about its topic.

use candle_core::{Device, Result, Tensor};
use masksub::{KeyedRng, Purpose, Seed};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::Rng;

pub const TOPICS: usize = 6;
/// Ids of padding and of the full stop; words follow.
pub const PAD: u32 = 0;
pub const STOP: u32 = 1;
pub const VOCABULARY: usize = 2 + COMMON.len() + TOPICS * (NOUNS + VERBS);
/// Two to five sentences of five to seven words and a full stop.
pub const MOST_TOKENS: usize = 5 * 8;

const NOUNS: usize = 16;
const VERBS: usize = 8;
/// How often a noun or a verb is one of any topic's.
const STRAY: f64 = 0.55;

const COMMON: [&str; 14] = [
    "the", "a", "we", "they", "she", "he", "today", "again", "slowly", "often", "with", "near", "old", "new",
];

/// For each topic its nouns and verbs.
const WORDS: [(&str, &str); TOPICS] = [
    (
        "soup oven salt butter knife onion recipe dough kitchen plate garlic spoon pan bread sauce pepper",
        "cooked baked tasted stirred chopped fried served burnt",
    ),
    (
        "sail harbour anchor wind deck rope captain tide mast keel buoy crew storm island compass wave",
        "steered moored sailed rowed drifted hoisted anchored sank",
    ),
    (
        "violin song choir drum melody concert piano rhythm tune stage note bass chord singer flute band",
        "played sang tuned rehearsed hummed conducted performed listened",
    ),
    (
        "seed soil rose spade hedge weed lawn tulip compost bulb shed ladder leaf bee apple pond",
        "planted watered pruned dug raked mowed picked grew",
    ),
    (
        "train ticket platform rail tunnel signal driver carriage timetable station bridge seat engine wagon track guard",
        "boarded missed waited arrived departed changed stopped travelled",
    ),
    (
        "goal team referee ball match coach stadium league pitch penalty keeper fan score jersey captaincy whistle",
        "kicked won lost trained scored tackled cheered passed",
    ),
];

fn words(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.split_whitespace()
}

/// All words, in the order of their ids.
fn vocabulary() -> Vec<&'static str> {
    let topics = WORDS.iter().flat_map(|(nouns, verbs)| words(nouns).chain(words(verbs)));
    ["(padding)", "."].into_iter().chain(COMMON).chain(topics).collect()
}

pub struct Messages {
    texts: Vec<Vec<u32>>,
    topics: Vec<u32>,
}

impl Messages {
    /// `count` messages, the same for the same seed and name; topics in turn.
    pub fn draw(seed: Seed, name: &str, count: usize) -> Self {
        let mut rng = seed.rng_for(name);
        let topics: Vec<u32> = (0..count).map(|i| (i % TOPICS) as u32).collect();
        let texts = topics.iter().map(|&topic| message(topic as usize, &mut rng)).collect();
        Self { texts, topics }
    }

    /// Their numbers in an order for the epoch.
    pub fn shuffled(&self, seed: Seed, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.texts.len()).collect();
        order.shuffle(&mut seed.at(epoch).step_rng(Purpose::custom(0)));
        order
    }

    /// Ids [B, L], padded to the longest, and topics `[B]`.
    pub fn batch(&self, samples: &[usize]) -> Result<(Tensor, Tensor)> {
        let longest = samples.iter().map(|&i| self.texts[i].len()).max().unwrap_or(0);
        let padded = |&i: &usize| {
            let text = self.texts[i].iter().copied();
            text.chain(std::iter::repeat(PAD)).take(longest)
        };
        let ids: Vec<u32> = samples.iter().flat_map(padded).collect();
        let topics: Vec<u32> = samples.iter().map(|&i| self.topics[i]).collect();
        let ids = Tensor::from_vec(ids, (samples.len(), longest), &Device::Cpu)?;
        Ok((ids, Tensor::new(topics, &Device::Cpu)?))
    }

    pub fn text(&self, index: usize) -> String {
        let vocabulary = vocabulary();
        let words: Vec<_> = self.texts[index].iter().map(|&id| vocabulary[id as usize]).collect();
        words.join(" ").replace(" .", ".")
    }
}

/// The ids of a message about `topic`.
fn message(topic: usize, rng: &mut KeyedRng) -> Vec<u32> {
    let mut text = vec![];
    for _ in 0..rng.random_range(2..=5) {
        let about = |rng: &mut KeyedRng| {
            if rng.random_bool(STRAY) {
                rng.random_range(0..TOPICS)
            } else {
                topic
            }
        };
        let first = 2 + COMMON.len();
        let noun = |rng: &mut KeyedRng| first + about(rng) * (NOUNS + VERBS) + rng.random_range(0..NOUNS);
        let verb = |rng: &mut KeyedRng| first + about(rng) * (NOUNS + VERBS) + NOUNS + rng.random_range(0..VERBS);
        let common = |from: &[usize], rng: &mut KeyedRng| 2 + from.choose(rng).copied().unwrap_or(0);
        // "they often baked the bread", "the old captain sang with a drum today".
        let mut sentence = if rng.random_bool(0.5) {
            vec![
                common(&[2, 3, 4, 5], rng),
                common(&[8, 9], rng),
                verb(rng),
                common(&[0, 1], rng),
                noun(rng),
            ]
        } else {
            vec![
                common(&[0, 1], rng),
                common(&[12, 13], rng),
                noun(rng),
                verb(rng),
                common(&[10, 11], rng),
                noun(rng),
            ]
        };
        if rng.random_bool(0.3) {
            sentence.push(common(&[6, 7], rng));
        }
        text.extend(sentence.into_iter().map(|id| id as u32));
        text.push(STOP);
    }
    text
}
