//! What a transfer tells while it runs. Libraries tell; programs draw.

use bedplate_model::Sha256;

/// Something that happened during a pull or a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The manifest is known: so many layers of so many bytes in all.
    Planned {
        /// How many layers the image has.
        layers: usize,
        /// The bytes of all layers as they travel.
        bytes: u64,
    },
    /// A layer's transfer begins.
    LayerStarted {
        /// The layer.
        digest: Sha256,
        /// Its length as it travels.
        size: u64,
    },
    /// More bytes of a layer were transferred.
    Bytes {
        /// The layer.
        digest: Sha256,
        /// How many since the last time.
        count: u64,
    },
    /// A layer need not be transferred: the other side has it.
    LayerReused {
        /// The layer.
        digest: Sha256,
        /// Its length as it would have travelled.
        size: u64,
    },
    /// A layer's transfer begins again after a failure; what [`Event::Bytes`] told of it is void.
    LayerRestarted {
        /// The layer.
        digest: Sha256,
    },
    /// A layer was transferred and is what it should be.
    LayerFinished {
        /// The layer.
        digest: Sha256,
    },
}

/// Hears of events, from several threads.
pub trait Observer: Sync {
    /// Takes note of an event.
    fn on(&self, event: Event);
}

impl<F: Fn(Event) + Sync> Observer for F {
    fn on(&self, event: Event) {
        self(event);
    }
}
