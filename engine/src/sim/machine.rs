//! Simulates one computer: workers, jobs and a clock, driven step by step in an order that the seed chooses, and hit by
//! outside events.

use super::faults::Faults;
use super::scenario::{OutsideEvent, Scenario};
use super::sim_job::SimJob;
use super::world::{SharedWorld, World};
use crate::buffer::Arena;
use crate::job::pass_controller::WorkerInboxes;
use crate::ring::Instant;
use crate::ring::sim::SimRing;
use crate::worker::{EXTRA_OPERATIONS, WaitMode, Worker, WorkerInbox};
use fastrand::Rng;
use std::sync::Arc;
use std::time::Duration;

/// Bound on the steps of a run.
const STEPS_MAX: u64 = 400_000;
/// Steps in which a dead device receives as many operations as it can.
const STEPS_ALONE: u64 = 500;
/// Longest sleep of an idle worker that is not woken.
const LONG: Duration = Duration::from_secs(3600);

/// A worker and its wait.
#[derive(Debug)]
struct SimWorker {
    worker: Worker<SimRing>,
    ring: usize,
    want: usize,
    wake: Instant,
    parked: bool,
}

/// A simulated computer.
#[derive(Debug)]
pub(crate) struct Machine {
    world: SharedWorld,
    scenario: Scenario,
    workers: WorkerInboxes,
    sim_workers: Vec<SimWorker>,
    jobs: Vec<SimJob>,
    /// Bytes of a slot.
    block_bytes: usize,
    step: u64,
    next_event: usize,
}

impl Machine {
    /// Creates the computer of a seed.
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (mut scenario, sites) =
            Scenario::draw(&mut rng, matches!(seed % 7, 0 | 2 | 5), matches!(seed % 11, 1 | 5 | 8));
        let world = SharedWorld::new(World::new(rng, sites, trace));
        let slots_bytes = (scenario.workers * scenario.depth * scenario.block_bytes()) as u64;
        let block_bytes = scenario.block_bytes();
        let plans = std::mem::take(&mut scenario.plans);
        let note = |plan| world.lock().note(format_args!("{plan:?}"));
        plans.iter().for_each(note);
        let jobs = plans.into_iter().enumerate();
        let jobs = jobs.map(|(index, plan)| SimJob::new(&world, index, plan, slots_bytes)).collect();
        let mut machine = Self {
            world,
            scenario,
            workers: Arc::new([]),
            sim_workers: Vec::new(),
            jobs,
            block_bytes,
            step: 0,
            next_event: 0,
        };
        machine.boot();
        machine
    }

    /// Runs until every job is done.
    pub(crate) fn run(&mut self) {
        while !self.jobs.iter().all(SimJob::is_done) {
            self.step += 1;
            assert!(self.step < STEPS_MAX, "it does not end");
            self.strike();
            self.act();
            self.jobs.iter_mut().for_each(SimJob::inspect);
        }
    }

    /// Replaces all faults and events by one: the devices of the first job never answer every second operation, and
    /// the job is not stopped. Runs until every other job is done; `false` if there is no other.
    pub(crate) fn run_beside_a_dead_device(&mut self) -> bool {
        let faults = |index| Faults { hang: if index == 0 { 0.5 } else { 0.0 }, ..Faults::default() };
        (0..).zip(&mut self.world.lock().sites).for_each(|(index, site)| site.faults = faults(index));
        // The dead device blocks as many operations as it can before the other jobs begin.
        while !self.jobs[0].is_done() && self.step < STEPS_ALONE {
            self.step += 1;
            self.jobs[1..].iter_mut().for_each(|job| job.wake = Duration::MAX);
            self.act();
        }
        self.jobs[1..].iter_mut().for_each(|job| job.wake = Duration::ZERO);
        while !self.jobs[1..].iter().all(SimJob::is_done) {
            self.step += 1;
            assert!(self.step < STEPS_MAX, "a device that does not answer stops a job that does not need it");
            self.act();
            self.jobs.iter_mut().for_each(SimJob::inspect);
        }
        self.jobs.len() > 1
    }

    fn boot(&mut self) {
        let (workers, depth, block_bytes) = (self.scenario.workers, self.scenario.depth, self.block_bytes);
        let inboxes: Vec<Arc<WorkerInbox>> = (0..workers).map(|_| Arc::default()).collect();
        let sim_worker = |inbox: &Arc<WorkerInbox>| {
            let arena = || Arc::new(Arena::new(block_bytes * depth).expect("a simulation needs little memory"));
            let ring = SimRing::new(&self.world, 2 * depth + 2 * EXTRA_OPERATIONS);
            let index = ring.index;
            let [slots, spare] = [arena(), arena()].map(|arena| arena.split(block_bytes, depth));
            let worker = Worker::new(ring, slots, spare, Arc::clone(inbox));
            SimWorker { worker, ring: index, want: 0, wake: Duration::ZERO, parked: false }
        };
        self.sim_workers = inboxes.iter().map(sim_worker).collect();
        self.workers = inboxes.into();
    }

    /// Runs one worker or job that is ready, or advances the clock.
    fn act(&mut self) {
        let ready = self.ready();
        let mut world = self.world.lock();
        if ready.is_empty() {
            let next =
                world.next_due().into_iter().chain(self.wakes()).min().expect("some job or worker waits for something");
            world.note("time passes");
            return world.advance(next);
        }
        let actor = ready[world.rng.usize(0..ready.len())];
        if world.rng.u8(0..4) == 0 {
            let later = world.now + Duration::from_micros(world.rng.u64(0..50));
            world.advance(later);
        }
        drop(world);
        match actor.checked_sub(self.sim_workers.len()) {
            None => self.work(actor),
            Some(job) => self.run_job(job),
        }
    }

    /// Workers, then jobs.
    fn ready(&self) -> Vec<usize> {
        let world = self.world.lock();
        let is_ready = |sim_worker: &SimWorker| {
            let arrived = world.arrived(sim_worker.ring);
            sim_worker.wake <= world.now || (!sim_worker.parked && arrived > 0 && arrived >= sim_worker.want)
        };
        let sim_workers = self.sim_workers.iter().map(is_ready);
        let jobs = self.jobs.iter().map(|job| job.wake <= world.now && !job.is_done());
        sim_workers.chain(jobs).enumerate().filter_map(|(index, ready)| ready.then_some(index)).collect()
    }

    fn wakes(&self) -> impl Iterator<Item = Instant> {
        let jobs = self.jobs.iter().filter(|job| !job.is_done()).map(|job| job.wake);
        self.sim_workers.iter().map(|sim_worker| sim_worker.wake).chain(jobs)
    }

    fn work(&mut self, index: usize) {
        let sim_worker = &mut self.sim_workers[index];
        let has_news = self.world.lock().arrived(sim_worker.ring) > 0;
        let rest = sim_worker.worker.turn();
        let now = self.world.lock().now;
        (sim_worker.want, sim_worker.wake, sim_worker.parked) = match rest {
            WaitMode::Ring { want, limit } => {
                sim_worker.worker.wait(want, limit);
                (want, now + limit, false)
            }
            WaitMode::Park(limit) => (0, now + limit.min(LONG), true),
            WaitMode::End => panic!("the worker was not asked to end"),
        };
        // A report of a worker wakes the pass controllers, now or soon. Otherwise they run at their own times.
        for job in self.jobs.iter_mut().filter(|job| has_news && !job.is_stuck()) {
            let soon = now + Duration::from_micros(self.world.lock().rng.u64(0..100));
            job.wake = job.wake.min(soon);
        }
    }

    fn run_job(&mut self, index: usize) {
        self.jobs[index].turn(&self.workers);
        let now = self.world.lock().now;
        self.sim_workers.iter_mut().filter(|sim_worker| sim_worker.parked).for_each(|sim_worker| sim_worker.wake = now);
    }

    /// Applies the next event if it is due, and stops jobs with an operation that is never answered.
    fn strike(&mut self) {
        for job in &mut self.jobs {
            if job.hangs() && self.world.lock().rng.u8(0..200) == 0 {
                job.cancel();
            }
        }
        if self.jobs.iter().any(SimJob::is_stuck) && self.world.lock().rng.u8(0..100) == 0 {
            return self.crash(false);
        }
        let Some(&(_, event)) = self.scenario.events.get(self.next_event).filter(|(step, _)| *step <= self.step) else {
            return;
        };
        if event == OutsideEvent::RestartUnheard
            && self.sim_workers.iter().all(|sim_worker| self.world.lock().arrived(sim_worker.ring) == 0)
        {
            return;
        }
        self.next_event += 1;
        let (now, victim) = {
            let world = &mut *self.world.lock();
            world.note(format_args!("event: {event:?}"));
            (world.now, world.rng.usize(0..self.jobs.len()))
        };
        let job = &mut self.jobs[victim];
        match event {
            OutsideEvent::Cancel => job.cancel(),
            OutsideEvent::Pause => {
                let pause = Duration::from_micros(self.world.lock().rng.u64(0..200_000));
                job.set_paused(Some(now + pause));
            }
            OutsideEvent::Limit => job.set_limit(),
            OutsideEvent::Change => job.change_source(),
            OutsideEvent::Restart | OutsideEvent::RestartUnheard => job.restart_server(),
            OutsideEvent::Shut | OutsideEvent::ShutAmidst => {
                let pause = self.shut_time();
                self.jobs[victim].shut(pause, event == OutsideEvent::ShutAmidst);
            }
            OutsideEvent::TakeOver => {
                let power = self.world.lock().rng.bool();
                self.jobs.iter_mut().for_each(SimJob::note_durable);
                self.crash(power);
                self.jobs.iter_mut().for_each(SimJob::take_over);
            }
            OutsideEvent::Kill => self.crash(false),
            OutsideEvent::PowerCut => self.crash(true),
        }
    }

    /// Draws how long a gate is closed: mostly short, sometimes longer than all timeouts.
    fn shut_time(&self) -> Duration {
        let rng = &mut self.world.lock().rng;
        let most = if rng.u8(0..8) == 0 { 40_000_000 } else { 300_000 };
        Duration::from_micros(rng.u64(0..most))
    }

    /// Kills the process, or cuts the power of the computer.
    fn crash(&mut self, power: bool) {
        self.sim_workers.clear();
        {
            let world = &mut *self.world.lock();
            world.note(if power { "the power goes" } else { "the process is killed" });
            world.abandon();
            let survives = [0.0, 0.5, 1.0][world.rng.usize(0..3)];
            for site in &mut world.sites {
                if power {
                    site.disks.iter_mut().for_each(|disk| disk.power_cut(survives, &mut world.rng));
                    site.journal.power_cut(survives, &mut world.rng);
                } else {
                    site.journal.kill(&mut world.rng);
                }
            }
        }
        self.jobs.iter_mut().for_each(|job| job.crash(power));
        self.boot();
    }
}
