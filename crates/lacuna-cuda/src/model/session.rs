//! Sequences that a decoder continues side by side. A step of one token each is recorded when it comes a second time, and from
//! then on replayed without the host's part of its launches: positions and the likeliest tokens stay on the machine.

use lacuna_core::Matrix;
use lacuna_model::{DecoderConfig, Sequences};

use super::block::Scratch;
use super::decoder::{Cache, Decoder};
use crate::activations::{Activations, upload_u32};
use crate::error::{Error, Result};
use crate::machine::{Buffer, Recording};
use crate::ops::{self, Places};

/// Some sequences, and what was seen of them. [`Sequences::extend`] continues them by given tokens.
pub struct Session<'a> {
    decoder: &'a Decoder,
    cache: Cache,
    step: Option<Step>,
}

/// One token each of some sequences.
struct Step {
    slots: Vec<usize>,
    /// of each: what it sees next
    tokens: Buffer,
    places: Places,
    hidden: Activations,
    scratch: Scratch,
    logits: Buffer,
    recording: Option<Box<dyn Recording>>,
    runs: usize,
}

impl<'a> Session<'a> {
    /// So many sequences, none of which has seen anything, with room for so many tokens each.
    pub fn new(decoder: &'a Decoder, sequences: usize, capacity: usize) -> Result<Self> {
        Ok(Self { decoder, cache: decoder.cache(sequences, capacity)?, step: None })
    }

    /// Lets all sequences take their likeliest token `steps` times, beginning with the given ones, and waits for it; what they
    /// would take next. The tokens in between are known to the machine alone.
    pub fn take_likeliest(&mut self, tokens: &[u32], steps: usize) -> Result<Vec<u32>> {
        self.prepare(&(0..tokens.len()).collect::<Vec<_>>(), tokens)?;
        for _ in 0..steps {
            self.run_step()?;
        }
        let step = self.step.as_ref().expect("just made");
        let bytes = self.decoder.machine().read(&step.tokens, size_of_val(tokens))?;
        Ok(bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect())
    }

    /// Makes a step ready that gives some sequences these tokens.
    fn prepare(&mut self, slots: &[usize], tokens: &[u32]) -> Result<()> {
        let (decoder, machine) = (self.decoder, self.decoder.machine());
        decoder.check_tokens(tokens)?;
        slots.iter().try_for_each(|&slot| self.cache.check(slot, 1))?;
        if let Some(step) = self.step.as_ref().filter(|step| step.slots == slots) {
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            return machine.write(&step.tokens, &bytes);
        }
        let (config, half) = (&decoder.config().blocks, decoder.half());
        let sequences: Vec<_> = slots.iter().map(|&slot| (slot, self.cache.lengths()[slot], 1)).collect();
        self.step = Some(Step {
            slots: slots.to_vec(),
            tokens: upload_u32(machine, tokens)?,
            places: Places::upload(machine, config, &sequences, true)?,
            hidden: Activations::empty(machine, half, [config.hidden_size, slots.len()])?,
            scratch: Scratch::empty(machine, config, half, slots.len())?,
            logits: decoder.room_for_logits(slots.len())?,
            recording: None,
            runs: 0,
        });
        Ok(())
    }

    /// One token each: done, the second time taken down, from then on replayed.
    fn run_step(&mut self) -> Result<()> {
        let Self { decoder, cache, step } = self;
        let step = step.as_mut().expect("made ready");
        step.slots.iter().try_for_each(|&slot| cache.check(slot, 1))?;
        let machine = decoder.machine();
        let Step { tokens, places, hidden, scratch, logits, recording, runs, .. } = &mut *step;
        let mut work = || {
            decoder.through(tokens, places, cache, hidden, scratch)?;
            decoder.project(hidden, logits)?;
            ops::next(machine, logits, decoder.config().vocab_size, tokens, places)
        };
        match (&recording, *runs) {
            (Some(recording), _) => recording.replay()?,
            (None, 0) => work()?,
            (None, _) => {
                let taken = machine.record(&mut work)?;
                taken.replay()?;
                *recording = Some(taken);
            }
        }
        *runs += 1;
        step.slots.iter().for_each(|&slot| cache.saw(slot, 1));
        Ok(())
    }
}

impl Sequences for Session<'_> {
    type Error = Error;

    fn config(&self) -> &DecoderConfig {
        self.decoder.config()
    }

    fn extend(&mut self, inputs: &[(usize, &[u32])]) -> Result<Matrix> {
        let decoder = self.decoder;
        if inputs.iter().all(|&(slot, tokens)| tokens.len() == 1 && self.cache.lengths().get(slot) > Some(&0)) {
            let tokens: Vec<u32> = inputs.iter().map(|(_, tokens)| tokens[0]).collect();
            self.prepare(&inputs.iter().map(|&(slot, _)| slot).collect::<Vec<_>>(), &tokens)?;
            self.run_step()?;
            let step = self.step.as_ref().expect("just run");
            return decoder.read_logits(&step.logits, inputs.len());
        }
        self.step = None;
        let hidden = decoder.forward(inputs, &mut self.cache)?;
        let ends = inputs.iter().scan(0, |end, (_, tokens)| {
            *end += tokens.len();
            Some(*end - 1)
        });
        decoder.logits(&hidden, &ends.collect::<Vec<_>>())
    }
}
