//! The footprint sees what is left behind.

use std::time::Duration;

use crate::rig::clean::{Footprint, alone};

#[test]
fn a_task_and_a_file_left_behind_are_seen_and_forgiven_once_gone() {
    alone(leave_behind());
}

async fn leave_behind() {
    let before = Footprint::take();
    before
        .restored(Duration::ZERO)
        .await
        .expect("nothing was done");

    let file = std::fs::File::open("/proc/self/stat").expect("linux has it");
    let leak = before
        .restored(Duration::from_millis(20))
        .await
        .expect_err("a file is open");
    assert_eq!(leak.files.len(), 1, "{leak:?}");
    drop(file);

    let task = tokio::spawn(std::future::pending::<()>());
    let leak = before
        .restored(Duration::from_millis(20))
        .await
        .expect_err("a task lives");
    assert_eq!(leak.tasks.1, leak.tasks.0 + 1, "{leak:?}");
    task.abort();
    before
        .restored(Duration::from_secs(5))
        .await
        .expect("all is back");
}
