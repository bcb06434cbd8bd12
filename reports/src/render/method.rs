//! Method and bias, as every report says them.

use super::blocks::Block;
use crate::{
    format,
    stats::{self, LEVEL},
    summary::Pairing,
    validate::word,
};

pub(crate) fn blocks() -> Vec<Block> {
    let items = [
        "Time to first token (TTFT): from prompt token ids in memory to the first token id chosen for every sequence of \
         the batch, weights mapped and warm, buffers allocated. Tokenization is excluded; the time is never divided by \
         the batch."
            .to_string(),
        "Cold starts (ids that end in /cold): the clock runs from opening the folders of the weights, none of whose pages are \
         in memory, to the first token id. Right after every one, the same work runs again with the weights in memory: what it \
         takes less is the time of opening and reading. Cold and warm cells are never compared with each other."
            .to_string(),
        "Three levels vary: rounds within a process, processes within an occasion, and occasions (minutes, hours or reboots \
         apart) on a machine. No resampling of the rounds of one process sees the other two."
            .to_string(),
        format!(
            "TTFT of several processes is the geometric mean of their medians, with Student's t interval of {:.0}% over \
             processes. Fewer than 3 processes are one process: the median of the samples with a bootstrap interval ({} \
             resamples, fixed seed, tails of Student's t) within that process. Below 6 samples that interval is their range, \
             with the lower confidence that it carries (75% for 3); below 3 there is none.",
            100.0 * LEVEL,
            stats::RESAMPLES
        ),
        format!(
            "Ratios of systems measured in the same rounds ({}): of every process the median over its rounds of the ratio, so \
             that a slow round does not count, then Student's t over processes. Otherwise they are ratios of medians, and \
             there is none if the machine's speed differed between the two.",
            Pairing::Paired.name()
        ),
        format!(
            "FLOPs and bytes are counted from shapes: products of the layers, attention, output head and predictor; every \
             weight and cache byte once. A system holds if the interval of TTFT reduction over FLOPs reduction lies within \
             {} of 1, or within the run's resolution where that is coarser; it falls short or exceeds if the interval lies \
             outside, and is undecided if it straddles. Words on one process are indicative.",
            format::percent(word::BAND)
        ),
        "Bias: but for cold starts, weights are warm and read in place, so the first request after loading is not what is shown. Prompts have \
         equal lengths. Synthetic weights have real shapes; values do not change the work of the systems timed here. A \
         system's time includes the thread pool, not the tokenizer, sampling or network. The machine's peak and bandwidth \
         are measured in the same process and drift with it: shares of peak are of what was there, not of a data sheet."
            .to_string(),
    ];
    vec![Block::List { items: items.into() }]
}
