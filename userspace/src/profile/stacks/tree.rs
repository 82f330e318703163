//! Makes one tree of many stacks: what stacks have in common from the outermost frame on is kept once.

use std::collections::HashMap;

use crate::profile::{Frame, Node, Stacks};

/// What makes two frames the same. The build id goes with the module.
type Identity = (String, Option<String>, Option<String>, bool);

#[derive(Debug, Default)]
pub struct Tree {
    stacks: Stacks,
    frames: HashMap<Identity, u32>,
    nodes: HashMap<(Option<u32>, u32), u32>,
}

impl Tree {
    /// The index of a frame, which is added if there is none like it.
    pub fn frame(&mut self, frame: Frame) -> u32 {
        let identity = (
            frame.function.clone(),
            frame.module.clone(),
            frame.source.clone(),
            frame.is_kernel,
        );
        *self.frames.entry(identity).or_insert_with(|| {
            self.stacks.frames.push(frame);
            (self.stacks.frames.len() - 1) as u32
        })
    }

    /// The node of the innermost of these frames, given outermost first.
    pub fn node(&mut self, frames: impl IntoIterator<Item = u32>) -> Option<u32> {
        frames.into_iter().fold(None, |parent, frame| {
            let node = self.nodes.entry((parent, frame)).or_insert_with(|| {
                self.stacks.nodes.push(Node { parent, frame });
                (self.stacks.nodes.len() - 1) as u32
            });
            Some(*node)
        })
    }

    pub fn push(&mut self, sample: crate::profile::Sample) {
        self.stacks.samples.push(sample);
    }

    pub fn finish(self) -> Stacks {
        self.stacks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str) -> Frame {
        Frame {
            function: function.to_owned(),
            module: None,
            build_id: None,
            source: None,
            is_kernel: false,
        }
    }

    #[test]
    fn common_begins_are_kept_once() {
        let mut tree = Tree::default();
        let [main, read, write] = ["main", "read", "write"].map(|name| tree.frame(frame(name)));
        assert_eq!(tree.frame(frame("read")), read);
        let first = tree.node([main, read]);
        let second = tree.node([main, write]);
        assert_eq!(tree.node([main, read]), first);
        assert_eq!(tree.node([]), None);
        let stacks = tree.finish();
        assert_eq!((stacks.frames.len(), stacks.nodes.len()), (3, 3));
        let parent = |node: Option<u32>| stacks.nodes[node.unwrap() as usize].parent;
        assert_eq!(parent(first), parent(second));
        assert_eq!(parent(first), Some(0));
    }

    #[test]
    fn the_same_frame_in_another_place_is_another_node() {
        let mut tree = Tree::default();
        let [main, call] = ["main", "call"].map(|name| tree.frame(frame(name)));
        assert_eq!(tree.node([main, call, main]), Some(2));
        let stacks = tree.finish();
        for (index, node) in stacks.nodes.iter().enumerate() {
            assert!(node.parent.is_none_or(|parent| (parent as usize) < index));
        }
    }
}
