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
        "Time to first token (TTFT) runs from prompt token ids in memory to the first token id chosen for every sequence of the \
         batch. The weights are mapped and warm, and the buffers are allocated. Tokenization is excluded, and the time is never \
         divided by the batch."
            .to_string(),
        "Cold starts have ids that end in /cold. Their clock runs from opening the folders of the weights, none of whose pages are \
         in memory, to the first token id. Right after every one, the same work runs again with the weights in memory; the \
         difference between the two times is the time of opening and reading. Cold and warm cells are never compared with each other."
            .to_string(),
        "Times vary on three levels: between the rounds of a process, between the processes of an occasion, and between the \
         occasions of a machine, which lie minutes, hours or reboots apart. The rounds of one process show nothing of the other \
         two."
            .to_string(),
        format!(
            "The TTFT of several processes is the geometric mean of their medians, with Student's t interval of {:.0}% over the \
             processes. Fewer than 3 processes are treated as one process: the TTFT is then the median of the samples, with a \
             bootstrap interval within that process ({} resamples, fixed seed, tails of Student's t). Fewer than 6 samples have \
             their range as interval, with the lower confidence that it carries (75% for 3). Fewer than 3 have none.",
            100.0 * LEVEL,
            stats::RESAMPLES
        ),
        format!(
            "The ratio of two systems that were measured in the same rounds ({}) is, for every process, the median of the ratio \
             over its rounds, so that a slow round does not count; its interval is Student's t over the processes. Other ratios \
             are ratios of medians, and there is none if the machine's speed differed between the two systems; arithmetic and memory count as the \
             roofline of the two has them.",
            Pairing::Paired.name()
        ),
        format!(
            "FLOPs and bytes are counted from shapes: the products of the layers, attention, output head and predictor, and \
             every byte of weights and cache once. A system holds if the interval of its TTFT reduction over its FLOPs reduction \
             lies within {} of 1, or within the run's resolution where that is coarser. It falls short or exceeds if the interval \
             lies outside, and is undecided if a part lies inside and a part outside. Words on one process are indicative.",
            format::percent(word::BAND)
        ),
        "The method has a bias. Except in cold starts, the weights are warm and read in place, so these times are not those of the first request after \
         loading. All prompts of a batch have the same length. Synthetic weights have real shapes, and their values do not change \
         the work of the systems timed here. A system's time includes its threads, but no tokenizer, sampling or network. The \
         machine's peak and bandwidth are measured in the same process and drift with it, so a share of the peak is a share of \
         what the machine reached at that time, and not of a data sheet."
            .to_string(),
    ];
    vec![Block::List { items: items.into() }]
}
