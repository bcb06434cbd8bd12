//! Loops, packing and threads: everything about an operation that no instruction set changes.

pub mod attention;
mod dot;
mod gemm;
pub(crate) mod library;
pub mod linear;
mod output;
#[cfg(feature = "peers")]
pub mod peers;
pub mod projections;
pub mod rowwise;
pub mod selection;

/// How evenly work is handed out, by simulation: tests of it need neither as many cores nor a quiet machine.
#[cfg(test)]
mod balance {
    /// When the last of so many threads ends, that take tasks of these lengths one by one; if `ahead`, each before it begins the one
    /// that it took before.
    pub fn end(threads: usize, ahead: bool, tasks: &[usize]) -> usize {
        let mut tasks = tasks.iter().copied();
        let mut held: Vec<(usize, Option<usize>)> =
            (0..threads).map(|_| (0, if ahead { tasks.next() } else { None })).collect();
        loop {
            let busy = held.iter_mut().filter(|(_, task)| !ahead || task.is_some()).min_by_key(|(at, _)| *at);
            let Some((at, task)) = busy else { break };
            let now = if ahead { std::mem::replace(task, tasks.next()) } else { tasks.next() };
            let Some(now) = now else { break };
            *at += now;
        }
        held.into_iter().map(|(at, _)| at).max().unwrap_or(0)
    }

    /// `[N, K]` of the products of OpenELM-1.1B.
    pub fn shapes() -> [(usize, usize); 6] {
        [(16384, 2048), (2048, 8192), (3072, 2048), (2048, 2048), (1536, 2048), (2048, 1024)]
    }

    #[test]
    fn the_last_thread_ends_when_it_must() {
        assert_eq!(end(2, false, &[3, 1, 1, 1]), 3);
        assert_eq!(end(2, true, &[3, 1, 1, 4]), 5, "each holds one while it works on another");
        assert_eq!(end(2, true, &[1, 3, 9]), 10, "the thread that began with 1 holds the 9, too");
        assert_eq!(end(3, true, &[5]), 5);
        assert_eq!(end(1, false, &[1, 2, 3]), 6);
    }
}
