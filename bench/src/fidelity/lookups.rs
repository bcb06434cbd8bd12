//! Look-ups: items whose answer stands in the prompt, drawn from a seed and spelled by the network's tokenizer.
//!
//! Each kind knows the level of chance: the share of items of one who sees what kind of answer is wanted, and takes one of those
//! in the prompt at random.

use anyhow::{Result, ensure};
use ttft_reports::fidelity::TaskKind;

use super::{
    draw::Draw,
    items::{Answer, Item},
};
use crate::{corpus::Corpus, text::Text};

/// Longest prompt of a look-up: they are no harder than short ones of a network that can do them, and cost less.
const LONGEST: usize = 256;
/// Words that are to be copied.
const COPIED: usize = 4;
/// Words hidden in a text.
const NEEDLES: usize = 4;

const NAMES: [&str; 32] = [
    "Adam", "Alice", "Anna", "Ben", "Carl", "Clara", "Daniel", "David", "Emma", "Eric", "Frank", "George", "Grace",
    "Helen", "Henry", "Jack", "James", "Jane", "John", "Julia", "Kate", "Laura", "Lucas", "Maria", "Mark", "Martin",
    "Oliver", "Paul", "Peter", "Robert", "Sarah", "Thomas",
];

const WORDS: [&str; 128] = [
    "apple", "arm", "bag", "ball", "bank", "beach", "bed", "bell", "bird", "board", "boat", "body", "book", "bottle",
    "box", "bread", "bridge", "brush", "bus", "cake", "camera", "card", "cat", "chair", "church", "circle", "city",
    "clock", "cloud", "coat", "coffee", "corn", "cow", "cross", "cup", "desk", "doctor", "dog", "door", "dress",
    "drum", "ear", "earth", "egg", "engine", "eye", "face", "farm", "field", "finger", "fire", "fish", "flag", "floor",
    "flower", "foot", "forest", "garden", "gate", "glass", "gold", "grass", "hair", "hand", "hat", "heart", "hill",
    "horse", "hotel", "house", "ice", "iron", "island", "key", "king", "kitchen", "knife", "lake", "lamp", "leaf",
    "letter", "light", "lion", "map", "market", "milk", "mirror", "moon", "mountain", "mouse", "music", "nail", "nose",
    "ocean", "office", "oil", "orange", "page", "paper", "pencil", "phone", "piano", "picture", "plane", "plant",
    "plate", "queen", "rain", "ring", "river", "road", "roof", "room", "salt", "school", "sea", "ship", "shoe",
    "silver", "snow", "star", "stone", "sugar", "sun", "table", "tree", "wall", "window",
];

/// The items of one kind.
pub struct LookUps {
    /// Which kind.
    pub kind: TaskKind,
    /// The level of chance.
    pub chance: f64,
    /// The items.
    pub items: Vec<Item>,
}

/// `count` items of each kind, of prompts of about so many tokens; needles are hidden in a text.
///
/// # Errors
/// The tokenizer refuses; a prompt is too short for needles.
pub fn draw(text: &Text, begin: &[u32], hay: &Corpus, prompt: usize, count: usize, seed: u64) -> Result<Vec<LookUps>> {
    let most = prompt.min(LONGEST);
    Ok(vec![
        copies(text, most, count, seed)?,
        pairs(text, most, count, seed)?,
        needles(text, begin, hay, most, count, seed)?,
    ])
}

/// An item whose answer continues a prompt, as the tokenizer spells both together.
fn item(text: &Text, prompt: &str, answer: &str) -> Result<Item> {
    let (alone, both) = (text.ids(prompt, false)?, text.ids(&format!("{prompt}{answer}"), false)?);
    // Where the last token of the prompt would be another one with the answer behind it, the prompt ends before.
    let shared = alone.iter().zip(&both).take_while(|(a, b)| a == b).count();
    ensure!(
        shared > 0 && shared < both.len(),
        "{}: the tokenizer makes nothing of {:?} behind {prompt:?}",
        text.path().display(),
        answer
    );
    Ok(Item { prompt: both[..shared].to_vec(), answer: Answer::Tokens(both[shared..].to_vec()) })
}

/// A list of words, and its beginning once more.
fn copies(text: &Text, most: usize, count: usize, seed: u64) -> Result<LookUps> {
    let n = (most / 4).clamp(3 * COPIED, 64);
    let mut draw = Draw::new(seed, "copy");
    let items = (0..count).map(|_| {
        let words = draw.some(&WORDS, n);
        // As much of it that it is clear what is done. Small networks copy lists with commas better than bare words.
        let at = COPIED + draw.below(n - 2 * COPIED + 1);
        let prompt = format!("{}\n\n{},", words.join(", "), words[..at].join(", "));
        item(text, &prompt, &format!(" {}", words[at..at + COPIED].join(", ")))
    });
    let places = n - COPIED + 1;
    Ok(LookUps { kind: TaskKind::Copy, chance: 1.0 / places as f64, items: items.collect::<Result<_>>()? })
}

/// A list of names with a word each, and one of the names once more.
fn pairs(text: &Text, most: usize, count: usize, seed: u64) -> Result<LookUps> {
    let n = (most / 8).clamp(4, 24);
    let mut draw = Draw::new(seed, "key and value");
    let items = (0..count).map(|_| {
        let (names, words) = (draw.some(&NAMES, n), draw.some(&WORDS, n));
        let lines: String = names.iter().zip(&words).map(|(name, word)| format!("{name}: {word}\n")).collect();
        let asked = draw.below(n);
        item(text, &format!("{lines}\n{}:", names[asked]), &format!(" {}", words[asked]))
    });
    Ok(LookUps { kind: TaskKind::KeyValue, chance: 1.0 / n as f64, items: items.collect::<Result<_>>()? })
}

/// Sentences that give a name a word, somewhere in a text, and the beginning of one of them once more.
fn needles(text: &Text, begin: &[u32], hay: &Corpus, most: usize, count: usize, seed: u64) -> Result<LookUps> {
    let mut draw = Draw::new(seed, "needle");
    let items = (0..count).map(|_| {
        let (names, words) = (draw.some(&NAMES, NEEDLES), draw.some(&WORDS, NEEDLES));
        let sentence = |i: usize| format!("\nThe secret word of {} is {}.\n", names[i], words[i]);
        let sentences = (0..NEEDLES).map(|i| text.ids(&sentence(i), true)).collect::<Result<Vec<_>>>()?;
        let asked = draw.below(NEEDLES);
        let question = format!("\nThe secret word of {} is", names[asked]);
        let (question, whole) =
            (text.ids(&question, true)?, text.ids(&format!("{question} {}", words[asked]), true)?);
        let shared = question.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        let taken = begin.len() + sentences.iter().map(Vec::len).sum::<usize>() + shared;
        ensure!(
            taken < most && shared < whole.len(),
            "{NEEDLES} needles and the question take {taken} tokens: give --prompt-tokens of {} or more, or --lookups 0",
            taken + 1
        );
        let room = most - taken;
        let straw = hay.piece(draw.below(hay.tokens()), room);
        // Where the needles are: so many tokens of the text stand before each.
        let mut at: Vec<usize> = (0..NEEDLES).map(|_| draw.below(straw.len() + 1)).collect();
        at.sort_unstable();
        let mut prompt = begin.to_vec();
        let mut from = 0;
        for (at, sentence) in at.into_iter().zip(&sentences) {
            prompt.extend_from_slice(&straw[from..at]);
            prompt.extend_from_slice(sentence);
            from = at;
        }
        prompt.extend_from_slice(&straw[from..]);
        prompt.extend_from_slice(&whole[..shared]);
        Ok(Item { prompt, answer: Answer::Tokens(whole[shared..].to_vec()) })
    });
    let chance = 1.0 / NEEDLES as f64;
    Ok(LookUps { kind: TaskKind::Needle, chance, items: items.collect::<Result<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_stands_twice() {
        for words in [&NAMES[..], &WORDS] {
            assert!(words.is_sorted_by(|a, b| a < b), "sorted, and none twice");
        }
    }
}
