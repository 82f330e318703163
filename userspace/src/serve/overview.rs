//! How all sites do, for those who ask: nobody else waits for them.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use tokio::sync::{mpsc::UnboundedSender, oneshot};

use super::{
    shared::Shared,
    site::{Order, Status},
};
use crate::proxy::plan::Stats;

/// How long the proxy may take to answer.
const PROXY_LIMIT: Duration = Duration::from_secs(1);

/// The sites of a gateway at some moment.
pub struct Overview {
    pub shared: Rc<Shared>,
    /// Where they take orders.
    pub sites: BTreeMap<String, UnboundedSender<Order>>,
    /// Where the gateway is asked for the figures of the proxy.
    pub stats: UnboundedSender<oneshot::Sender<Stats>>,
}

impl Overview {
    /// What the sites say that answer within a time: one that is being woken has no time until then.
    pub async fn statuses(&self, limit: Duration) -> Vec<Status> {
        let asked = self.sites.values().map(|site| {
            let (sender, answer) = oneshot::channel();
            let _ = site.send(Order::Describe(sender));
            tokio::time::timeout(limit, answer)
        });
        let asked: Vec<_> = asked.collect();
        let answers = futures_util::future::join_all(asked).await;
        answers.into_iter().flatten().flatten().collect()
    }

    /// What the proxy has counted, if there is one and it answers.
    pub async fn proxy(&self) -> Option<Stats> {
        let (sender, answer) = oneshot::channel();
        self.stats.send(sender).ok()?;
        tokio::time::timeout(PROXY_LIMIT, answer).await.ok()?.ok()
    }
}
