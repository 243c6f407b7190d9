//! An iterator that works one item ahead, on a thread of its own.

use std::sync::mpsc::{sync_channel, Receiver};
use std::thread::JoinHandle;

/// Yields what `source` yields, in order. While the caller uses an item, the next one is made; no more than that one
/// waits. Dropping it ends the thread.
pub struct Prefetch<T> {
    ready: Option<Receiver<anyhow::Result<T>>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetch<T> {
    pub fn new<I>(source: I) -> Self
    where
        I: Iterator<Item = anyhow::Result<T>> + Send + 'static,
    {
        // Without a buffer the thread holds one finished item until it is taken.
        let (sender, receiver) = sync_channel(0);
        let thread = std::thread::spawn(move || {
            for item in source {
                if sender.send(item).is_err() {
                    return; // nobody is listening any more
                }
            }
        });
        Self {
            ready: Some(receiver),
            thread: Some(thread),
        }
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = anyhow::Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(item) = self.ready.as_ref()?.recv() {
            return Some(item);
        }
        // The thread is done. An image decoder that panicked must not look like the end of the data.
        self.ready = None;
        match self.thread.take()?.join() {
            Ok(()) => None,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                Some(Err(anyhow::anyhow!("the thread that loads images panicked: {text}")))
            }
        }
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.ready = None; // wakes the thread, if it waits to hand over
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn keeps_the_order_and_passes_errors_on() {
        let source = (0..5).map(|i| match i {
            3 => Err(anyhow::anyhow!("three")),
            i => Ok(i),
        });
        let got: Vec<_> = Prefetch::new(source).map(|r| r.map_err(|e| e.to_string())).collect();
        assert_eq!(got, [Ok(0), Ok(1), Ok(2), Err("three".into()), Ok(4)]);
    }

    #[test]
    fn works_one_item_ahead_and_no_further() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        let mut items = Prefetch::new((0..100).map(move |i| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(i)
        }));
        items.next();
        items.next();
        for _ in 0..100 {
            if made.load(Ordering::SeqCst) == 3 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(made.load(Ordering::SeqCst), 3);
        drop(items); // must not hang
        assert_eq!(made.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn a_panic_of_the_thread_is_an_error_and_then_the_end() {
        let source = (0..3).map(|i| if i == 1 { panic!("bad {i}") } else { Ok(i) });
        let mut items = Prefetch::new(source);
        assert_eq!(items.next().unwrap().unwrap(), 0);
        let error = items.next().unwrap().unwrap_err().to_string();
        assert_eq!(error, "the thread that loads images panicked: bad 1");
        assert!(items.next().is_none());
    }
}
