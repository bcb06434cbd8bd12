//! What readers of a prompt have in common is run once.

use std::sync::Arc;

use anyhow::Result;
use ttft_models::{
    Inference, Network, Precision, System, cost::CostSystem, kv_prediction::control::Filling, schedule::Schedule,
};

use super::readers::{self, Reader, Row};

/// How a reader comes to its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// It reads all of the prompt that it is given.
    Whole,
    /// It begins where this earlier reader is behind steps that both have.
    After(usize),
    /// It would do what this earlier reader does, and answers the same.
    As(usize),
}

/// The readers of a prompt of some length.
#[derive(Debug)]
pub struct Reads {
    /// How each comes to its answers.
    pub courses: Vec<Course>,
    /// Operations of each, up to so many tokens after the first.
    pub work: Vec<u64>,
    shapes: Vec<CostSystem>,
}

/// A reader of a prompt, as far as it decides whether another does the same.
struct Outline {
    system: System,
    shapes: CostSystem,
    schedule: Schedule,
    /// Last and first tokens that it is given.
    given: (usize, usize),
    /// Whether what fills its caches follows from the prompt and the base alone.
    of_base: bool,
}

impl Outline {
    fn of(row: &Row, base: &Arc<Network>, precision: Precision, n: usize) -> Result<Outline> {
        // Which entries are put into caches does not matter for the shapes.
        let system = row.system(base, &[], 0)?;
        let given = row.short(base, precision, n).unwrap_or((n, 0));
        let shapes = CostSystem::of(&system);
        let schedule = Schedule::new(&shapes, &readers::spec(precision, given.0 + given.1, 1));
        let filling = shapes.prediction.as_ref().and_then(|p| p.filling);
        let of_base = filling == Some(Filling::Nothing) || matches!(row.reader, Reader::True(_));
        Ok(Outline { system, shapes, schedule, given, of_base })
    }

    /// Whether the other does the same, on the same tokens with the same weights.
    fn same(&self, other: &Outline) -> bool {
        let alike = match (&self.system, &other.system) {
            (System::Network(_), System::Network(_)) => true,
            (System::KvPrediction(_), System::KvPrediction(_)) => self.of_base && other.of_base,
            _ => false,
        };
        let base = Arc::ptr_eq(self.system.base(), other.system.base());
        alike && base && self.given == other.given && self.schedule == other.schedule
    }

    /// Whether what the other has of networks is what this has.
    fn fits(&self, other: &Outline) -> bool {
        self.system.networks().zip(other.system.networks()).all(|(own, other)| Arc::ptr_eq(own, other))
    }
}

impl Reads {
    /// Of a prompt of `n` tokens, the base first; `later` tokens are scored or written after the first.
    ///
    /// # Errors
    /// What making a system says.
    pub fn new(rows: &[Row], base: &Arc<Network>, precision: Precision, n: usize, later: usize) -> Result<Reads> {
        let outlines = rows.iter().map(|row| Outline::of(row, base, precision, n)).collect::<Result<Vec<_>>>()?;
        let (mut courses, mut work) = (Vec::new(), Vec::new());
        for (i, own) in outlines.iter().enumerate() {
            if let Some(earlier) = outlines[..i].iter().position(|other| own.same(other)) {
                courses.push(Course::As(earlier));
                work.push(0);
                continue;
            }
            let given = own.given.0 + own.given.1;
            let next = own.shapes.next_token(&readers::spec(precision, given, later + 1), given).flops.total();
            let all =
                readers::operations(&own.shapes, precision, given).saturating_add(next.saturating_mul(later as u64));
            let lender = |(at, other): (usize, &Outline)| {
                let can = courses[at] == Course::Whole && other.given == own.given && own.fits(other);
                let spared = if can { own.shapes.borrowed(&readers::spec(precision, n, 1), &other.shapes) } else { 0 };
                (spared > 0).then_some((spared, at))
            };
            let predicts = matches!(own.system, System::KvPrediction(_));
            let lenders = outlines[..i].iter().enumerate().filter(|_| predicts).filter_map(lender);
            // Of equal ones the first.
            let (spared, course) = match lenders.min_by_key(|(spared, _)| std::cmp::Reverse(*spared)) {
                Some((spared, at)) => (spared, Course::After(at)),
                None => (0, Course::Whole),
            };
            courses.push(course);
            work.push(all.saturating_sub(spared));
        }
        Ok(Reads { courses, work, shapes: outlines.into_iter().map(|o| o.shapes).collect() })
    }

    /// The systems of the readers that begin where this one is.
    pub fn borrowers(&self, of: usize) -> Vec<&CostSystem> {
        let all = self.courses.iter().zip(&self.shapes);
        all.filter(|(course, _)| **course == Course::After(of)).map(|(_, shapes)| shapes).collect()
    }

    /// The run that this one begins after, of those that have been kept.
    pub fn lender<'r>(&self, of: usize, runs: &'r [Option<Box<dyn Inference>>]) -> Option<&'r dyn Inference> {
        match self.courses[of] {
            Course::After(lender) => runs[lender].as_deref(),
            Course::Whole | Course::As(_) => None,
        }
    }
}
