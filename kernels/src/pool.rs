//! A persistent thread pool for kernels: fork-join regions, no queues.
//!
//! Workers spin for a while after a region, so that the next one (microseconds later, in a forward pass) starts at
//! once, then park. Work inside a region is handed out by an atomic counter: cores of different speed, or with a noisy
//! neighbour, take what they can.
//!
//! Regions are entered in a [`Turn`]: one thread at a time has the pool, and whoever asks for a turn inside a region is refused
//! instead of waiting for itself.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    hint,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::*},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

use crate::{cpu::prefer_fast_cores, level::Around};

/// How long a thread spins before it parks: far above the gap between two regions of a forward pass.
const SPIN: Duration = Duration::from_micros(100);

/// Spins between looks at the clock. One takes 5 to 50 ns, by CPU.
const LOOK: usize = 128;

/// Waits for another thread, which unparks this one if it finds it among the `parked`.
fn wait(parked: &AtomicUsize, done: impl Fn() -> bool) {
    let (mut spins, mut since) = (0, None);
    while !done() {
        spins += 1;
        if spins % LOOK != 0 {
            hint::spin_loop();
        } else if since.get_or_insert_with(Instant::now).elapsed() < SPIN {
            // The thread that is waited for may have been woken on this core.
            thread::yield_now();
        } else {
            // Either this thread sees the change below, or the one that makes it, which looks at `parked` afterwards, sees this one.
            parked.fetch_add(1, SeqCst);
            while !done() {
                thread::park();
            }
            parked.fetch_sub(1, SeqCst);
        }
    }
}

/// What many threads look at, in cache lines of its own (of a pair of them, which are fetched together), so that they are not slowed
/// down by what stands beside.
#[derive(Default)]
#[repr(align(128))]
struct Alone<T>(T);

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Counts regions; a change is the signal to start.
    epoch: Alone<AtomicUsize>,
    /// Workers that have not finished the current region.
    pending: Alone<AtomicUsize>,
    /// The last region that all workers have left.
    done: Alone<AtomicUsize>,
    /// Workers that wait asleep, and the caller, if it does.
    parked: AtomicUsize,
    caller_parked: AtomicUsize,
    /// The region's body. Written only while no worker is in a region, before `epoch` changes.
    job: UnsafeCell<Job>,
    caller: UnsafeCell<Option<Thread>>,
    quit: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` and `caller` are written by the one caller that holds `Pool::turn`, only while no worker is in a
// region (`done` has reached `epoch`), and read by workers only after they have seen the new `epoch` and before the last of them sets
// `done` (Release/Acquire). The job is `Sync`, so calling it from many threads is sound.
unsafe impl Sync for Shared {}
// SAFETY: nothing in it belongs to a thread: the raw job pointer is only used between the two synchronisation points of a
// region, `epoch` and `done`, and what it points to is `Sync`.
unsafe impl Send for Shared {}

thread_local! {
    /// The pool that this thread works for, 0 for none.
    static WITHIN: Cell<usize> = const { Cell::new(0) };
}

/// Names pools, from 1 on.
static POOLS: AtomicUsize = AtomicUsize::new(1);

/// What a thread did, from when to when.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Which of the pool's.
    pub thread: usize,
    /// The operation; a product of few rows that is computed beside another lies within that one's part.
    pub what: &'static str,
    /// Its start.
    pub start: Instant,
    /// Its end.
    pub end: Instant,
}

/// Parts that are logged, if they are asked for.
#[derive(Debug, Default)]
struct Log {
    on: AtomicBool,
    parts: Mutex<Vec<Part>>,
}

/// Persistent worker threads; the calling thread is worker 0.
///
/// A pool runs one region at a time; other threads wait for their turn. A region cannot be entered inside another one: that is a
/// panic with a message, on whichever number of threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
    id: usize,
    /// The pool inside whose regions this one may be used, 0 for none. Pools and those they may be used in are a forest, so that
    /// no two threads wait for each other's pool.
    parent: usize,
    log: Log,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// A pool of `threads` threads in all, the caller included (at least 1); of fewer if the system gives no more.
    pub fn new(threads: usize) -> Pool {
        Pool::inside(0, threads)
    }

    /// A pool of the calling thread alone, which may be one of this pool's inside a region.
    pub(crate) fn single(&self) -> Pool {
        Pool::inside(self.id, 1)
    }

    fn inside(parent: usize, threads: usize) -> Pool {
        prefer_fast_cores();
        let pool = POOLS.fetch_add(1, Relaxed);
        let shared = Arc::new(Shared {
            epoch: Alone::default(),
            pending: Alone::default(),
            done: Alone::default(),
            parked: AtomicUsize::new(0),
            caller_parked: AtomicUsize::new(0),
            job: UnsafeCell::new(&|_| {}),
            caller: UnsafeCell::new(None),
            quit: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let spawn = |id| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("ttft-{id}")).spawn(move || worker(&shared, id, pool)).ok()
        };
        let workers = (1..threads.max(1)).map_while(spawn).collect();
        Pool { shared, workers, turn: Mutex::new(()), id: pool, parent, log: Log::default() }
    }

    /// Threads that work in a region.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Parallel regions since the pool was built: starts of its workers. Work that is run on the calling thread alone is
    /// none. Wraps around.
    pub fn regions(&self) -> usize {
        self.shared.epoch.0.load(Relaxed)
    }

    /// Has what each thread does logged, or no longer. Costs a lock for each part of a region.
    pub fn log(&self, on: bool) {
        self.log.on.store(on, Relaxed);
    }

    /// What was logged since the last call.
    pub fn take_log(&self) -> Vec<Part> {
        std::mem::take(&mut *self.log.parts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until no other thread has the pool, and takes it.
    ///
    /// # Panics
    /// Inside a region, unless it is one of the pool that this one is a part of.
    pub(crate) fn turn(&self) -> Turn<'_> {
        self.turn_with(None, "other work")
    }

    /// As [`Pool::turn`], for regions that each thread enters and leaves in some way, and that are logged by a name.
    pub(crate) fn turn_with(&self, around: Option<Around>, what: &'static str) -> Turn<'_> {
        let before = WITHIN.get();
        assert!(
            before == 0 || before == self.parent,
            "a parallel operation was called inside a parallel region, where it would wait for its own thread: call it after the region"
        );
        let _held = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        WITHIN.set(self.id);
        Turn { pool: self, before, around, what, _held }
    }

    /// Runs `body(thread)` once on every thread and returns when all are done. A panic in `body` is passed on.
    ///
    /// # Panics
    /// Inside a region.
    pub fn run(&self, body: impl Fn(usize) + Sync) {
        self.turn().run(body);
    }

    /// Runs `body(task, thread)` for every task in `0..tasks`, handed out one by one.
    ///
    /// # Panics
    /// Inside a region.
    pub fn for_each(&self, tasks: usize, body: impl Fn(usize, usize) + Sync) {
        self.turn().for_each(tasks, body);
    }
}

/// A pool that no other thread can enter: what its threads keep between regions belongs to the holder until it is dropped.
pub(crate) struct Turn<'a> {
    pool: &'a Pool,
    /// What [`WITHIN`] was before.
    before: usize,
    around: Option<Around>,
    what: &'static str,
    _held: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// As [`Pool::run`].
    pub fn run(&self, body: impl Fn(usize) + Sync) {
        let workers = &self.pool.workers;
        let body = |thread| self.part(thread, || body(thread));
        if workers.is_empty() {
            return body(0);
        }
        let job: &(dyn Fn(usize) + Sync) = &body;
        let s = &*self.pool.shared;
        // SAFETY: we hold the turn, and all workers have left the region before, so none reads these now. The lifetime of `job` is
        // erased, but this function does not return (nor unwind) before every worker has left the region.
        unsafe {
            *s.job.get() = std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job);
            *s.caller.get() = Some(thread::current());
        }
        s.pending.0.store(workers.len(), Relaxed);
        let region = s.epoch.0.fetch_add(1, SeqCst).wrapping_add(1);
        if s.parked.load(SeqCst) > 0 {
            workers.iter().for_each(|w| w.thread().unpark());
        }
        let own = catch_unwind(AssertUnwindSafe(|| body(0)));
        wait(&s.caller_parked, || s.done.0.load(SeqCst) == region);
        let theirs = s.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(p) = own.err().or(theirs) {
            resume_unwind(p);
        }
    }

    /// As [`Pool::for_each`]. One task alone starts no worker.
    pub fn for_each(&self, tasks: usize, body: impl Fn(usize, usize) + Sync) {
        let next = AtomicUsize::new(0);
        self.run_for(tasks, |thread| {
            loop {
                let t = next.fetch_add(1, Relaxed);
                if t >= tasks {
                    break;
                }
                body(t, thread);
            }
        });
    }

    /// As [`Turn::for_each`], with the task that the same thread will do next: `body(task, next, thread)`.
    pub fn for_each_ahead(&self, tasks: usize, body: impl Fn(usize, Option<usize>, usize) + Sync) {
        let next = AtomicUsize::new(0);
        let claim = || Some(next.fetch_add(1, Relaxed)).filter(|&t| t < tasks);
        self.run_for(tasks, |thread| {
            let mut task = claim();
            while let Some(t) = task {
                task = claim();
                body(t, task, thread);
            }
        });
    }

    fn run_for(&self, tasks: usize, work: impl Fn(usize) + Sync) {
        if tasks <= 1 { self.part(0, || work(0)) } else { self.run(work) }
    }

    /// A thread's part of a region, entered and left.
    fn part(&self, thread: usize, part: impl FnOnce()) {
        struct Leave(fn());
        impl Drop for Leave {
            fn drop(&mut self) {
                (self.0)();
            }
        }
        let _leave = self.around.map(|a| {
            (a.enter)();
            Leave(a.leave)
        });
        self.logged(thread, self.what, part);
    }

    /// Something that a thread does within its part, logged if that is.
    pub fn logged(&self, thread: usize, what: &'static str, part: impl FnOnce()) {
        let log = &self.pool.log;
        if !log.on.load(Relaxed) {
            return part();
        }
        let start = Instant::now();
        part();
        let part = Part { thread, what, start, end: Instant::now() };
        log.parts.lock().unwrap_or_else(PoisonError::into_inner).push(part);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        WITHIN.set(self.before);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, Release);
        self.shared.epoch.0.fetch_add(1, SeqCst);
        for w in self.workers.drain(..) {
            w.thread().unpark();
            // A worker catches what its jobs panic with; nothing is left to report here.
            let _ = w.join();
        }
    }
}

fn worker(s: &Shared, id: usize, pool: usize) {
    prefer_fast_cores();
    WITHIN.set(pool);
    let mut seen = 0;
    loop {
        wait(&s.parked, || s.epoch.0.load(SeqCst) != seen);
        // The next one starts only when this thread has left this one.
        seen = s.epoch.0.load(Acquire);
        if s.quit.load(Acquire) {
            return;
        }
        // SAFETY: the new epoch was seen with Acquire, so the writes before it are visible; the caller waits for us
        // (`done`) before it returns, so the job is alive, and writes the cell only afterwards.
        let job = unsafe { &**s.job.get() };
        if let Err(p) = catch_unwind(AssertUnwindSafe(|| job(id))) {
            *s.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(p);
        }
        if s.pending.0.fetch_sub(1, AcqRel) == 1 {
            // SAFETY: as for the job. Once `done` is set, the caller may write its cell again, and it may be gone.
            let caller = unsafe { (*s.caller.get()).clone() };
            s.done.0.store(seen, SeqCst);
            if s.caller_parked.load(SeqCst) > 0
                && let Some(caller) = caller
            {
                caller.unpark();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_any_thread_count() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 5, 1000] {
                let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(tasks, |t, thread| {
                    assert!(thread < threads);
                    hits[t].fetch_add(1, Relaxed);
                });
                pool.turn().for_each_ahead(tasks, |t, next, thread| {
                    assert!(thread < threads && next.is_none_or(|n| t < n && n < tasks));
                    hits[t].fetch_add(1, Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Relaxed) == 2), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn each_thread_has_its_parts_logged() {
        let pool = Pool::new(2);
        pool.run(|_| ());
        assert!(pool.take_log().is_empty());
        pool.log(true);
        pool.run(|_| ());
        pool.for_each(1, |_, thread| assert_eq!(thread, 0));
        let mut threads: Vec<usize> = pool.take_log().iter().map(|p| p.thread).collect();
        threads.sort_unstable();
        assert_eq!(threads, [0, 0, 1]);
        pool.log(false);
        pool.run(|_| ());
        assert!(pool.take_log().is_empty());
    }

    #[test]
    fn regions_are_starts_of_workers() {
        let pool = Pool::new(2);
        for (tasks, regions) in [(0, 0), (1, 0), (2, 1), (100, 2)] {
            pool.for_each(tasks, |_, _| ());
            assert_eq!(pool.regions(), regions, "after {tasks} tasks");
        }
        let alone = Pool::new(1);
        alone.for_each(100, |_, _| ());
        assert_eq!(alone.regions(), 0);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for bad in 0..3 {
            let r = catch_unwind(AssertUnwindSafe(|| pool.run(|t| assert!(t != bad, "thread {bad}"))));
            assert!(r.is_err());
        }
        let n = AtomicUsize::new(0);
        pool.run(|_| {
            n.fetch_add(1, Relaxed);
        });
        assert_eq!((n.into_inner(), pool.regions()), (3, 4));
    }

    #[test]
    fn a_region_inside_a_region_is_refused_and_one_of_a_part_is_not() {
        for threads in [1, 3] {
            let pool = Pool::new(threads);
            for tasks in [1, 5] {
                let nested = catch_unwind(AssertUnwindSafe(|| pool.for_each(tasks, |_, _| pool.run(|_| ()))));
                let text = *nested.unwrap_err().downcast::<&str>().unwrap();
                assert!(text.contains("inside a parallel region"), "{text}");
            }
            let other = Pool::new(1);
            assert!(catch_unwind(AssertUnwindSafe(|| pool.run(|_| other.run(|_| ())))).is_err());
            let parts: Vec<Pool> = (0..threads).map(|_| Pool::inside(pool.id, 2)).collect();
            let n = AtomicUsize::new(0);
            pool.run(|t| {
                parts[t].run(|_| {
                    n.fetch_add(1, Relaxed);
                });
            });
            pool.run(|_| ());
            assert_eq!(n.into_inner(), 2 * threads);
        }
    }

    #[test]
    fn one_thread_at_a_time_has_the_pool() {
        let (pool, inside) = (Pool::new(2), AtomicUsize::new(0));
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for i in 0..500 {
                        // Tasks that are run inline too.
                        let turn = pool.turn();
                        assert_eq!(inside.fetch_add(1, SeqCst), 0);
                        turn.for_each(i % 3, |_, _| assert_eq!(inside.load(SeqCst), 1));
                        inside.fetch_sub(1, SeqCst);
                    }
                });
            }
        });
    }

    #[test]
    fn parked_workers_wake_up() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            let n = AtomicUsize::new(0);
            pool.run(|_| {
                n.fetch_add(1, Relaxed);
            });
            assert_eq!(n.into_inner(), 2);
        }
    }
}
