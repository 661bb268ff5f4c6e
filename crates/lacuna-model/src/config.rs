//! What a model looks like, whatever its family called it.

use crate::pooling::Pooling;
use crate::rope::RopeConfig;

/// A model that can be run, by what it does.
#[derive(Debug, Clone, PartialEq)]
pub enum Config {
    /// continues texts
    Decoder(DecoderConfig),
    /// turns texts into vectors
    Text(TextConfig),
    /// tells what images show
    Vision(VisionConfig),
}

impl Config {
    /// The blocks.
    pub fn blocks(&self) -> &BlockConfig {
        match self {
            Self::Decoder(config) => &config.blocks,
            Self::Text(config) => &config.blocks,
            Self::Vision(config) => &config.blocks,
        }
    }

    /// What the model does, in words.
    pub fn purpose(&self) -> &'static str {
        match self {
            Self::Decoder(_) => "writes text",
            Self::Text(_) => "embeds text",
            Self::Vision(_) => "classifies images",
        }
    }

    /// The tensor of the embedding, which is never pruned: its type is the checkpoint's own.
    pub fn embedding(&self) -> String {
        match self {
            Self::Decoder(_) => DecoderConfig::EMBEDDING.to_owned(),
            Self::Text(config) => config.tensor("word_embeddings.weight"),
            Self::Vision(config) => config.patches().weight(),
        }
    }
}

/// Sizes and switches of a transformer's blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockConfig {
    /// width of the residual stream
    pub hidden_size: usize,
    /// width of the MLP
    pub intermediate_size: usize,
    /// query heads
    pub heads: usize,
    /// key/value heads; each serves `heads / kv_heads` query heads
    pub kv_heads: usize,
    /// features of a head
    pub head_dim: usize,
    /// kind of all norms
    pub norm: NormKind,
    /// epsilon of the norms
    pub norm_eps: f32,
    /// where the norms stand
    pub norm_place: NormPlace,
    /// the function inside the MLP
    pub activation: Activation,
    /// what a token sees
    pub view: View,
    /// biases of q, k and v
    pub qkv_bias: bool,
    /// bias of the attention's output
    pub o_bias: bool,
    /// biases of the MLP
    pub mlp_bias: bool,
    /// number of blocks
    pub layers: usize,
    /// what the checkpoint calls them
    pub names: BlockNames,
}

/// Kind of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / √(mean(x²) + eps) · w`
    Rms,
    /// `(x − mean(x)) / √(var(x) + eps) · w + b`
    Layer,
}

/// Where a block's norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlace {
    /// `x + f(norm(x))`
    BeforeSublayer,
    /// `norm(x + f(x))`
    AfterResidual,
}

/// The function inside an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`
    Silu,
    /// `x · Φ(x)`, exactly
    GeluErf,
    /// the same by a hyperbolic tangent
    GeluTanh,
    /// the same by a sigmoid, `x · σ(1.702 x)`
    GeluSigmoid,
    /// `max(x, 0)`
    Relu,
}

/// What a token sees of its sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum View {
    /// all of it; positions are part of the embedding
    All,
    /// what came before it, its distance by rotation
    Past {
        /// rotary embedding
        rope: RopeConfig,
        /// attention window of each layer, in tokens, the current one included; one entry a layer
        windows: Vec<Option<usize>>,
    },
}

/// Module names of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockNames {
    /// before a block's number
    pub prefix: String,
    /// the norms: of the attention, of the MLP
    pub norms: [&'static str; 2],
    /// queries, keys and values, each by itself or all in one weight
    pub qkv: Qkv<&'static str>,
    /// the attention's output
    pub o: &'static str,
    /// the gate of a gated MLP, `down(f(gate(x)) · up(x))`; a plain one is `down(f(up(x)))`
    pub gate: Option<&'static str>,
    /// into the MLP
    pub up: &'static str,
    /// out of it
    pub down: &'static str,
}

/// Something of the projections to queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qkv<T> {
    /// of three weights
    Apart([T; 3]),
    /// of one weight, `[q; k; v]`
    Together(T),
}

impl<T> Qkv<T> {
    /// One or three.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::Apart(three) => three,
            Self::Together(one) => std::slice::from_ref(one),
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            Self::Apart(three) => three,
            Self::Together(one) => std::slice::from_mut(one),
        }
    }

    pub(crate) fn as_ref(&self) -> Qkv<&T> {
        match self {
            Self::Apart(three) => Qkv::Apart(three.each_ref()),
            Self::Together(one) => Qkv::Together(one),
        }
    }

    pub(crate) fn map<U>(self, mut f: impl FnMut(T) -> U) -> Qkv<U> {
        match self {
            Self::Apart(three) => Qkv::Apart(three.map(f)),
            Self::Together(one) => Qkv::Together(f(one)),
        }
    }

    pub(crate) fn try_map<U, E>(self, mut f: impl FnMut(T) -> Result<U, E>) -> Result<Qkv<U>, E> {
        Ok(match self {
            Self::Apart([q, k, v]) => Qkv::Apart([f(q)?, f(k)?, f(v)?]),
            Self::Together(one) => Qkv::Together(f(one)?),
        })
    }
}

/// A linear layer as config.json implies it.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearSpec {
    /// module name, without `.weight`
    pub name: String,
    /// out_features
    pub rows: usize,
    /// in_features
    pub cols: usize,
    /// whether it has a bias
    pub bias: bool,
    /// whether it lies behind the blocks: pruned only when asked for by name
    pub head: bool,
}

/// Something of the linear layers of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockLinears<T> {
    /// to queries, keys and values
    pub qkv: Qkv<T>,
    /// the attention's output
    pub o: T,
    /// the gate of a gated MLP
    pub gate: Option<T>,
    /// into the MLP
    pub up: T,
    /// out of it
    pub down: T,
}

impl<T> BlockLinears<T> {
    /// Each layer, in the order of a forward pass.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let Self { qkv, o, gate, up, down } = self;
        qkv.as_mut_slice().iter_mut().chain([o]).chain(gate).chain([up, down])
    }

    /// Turns each layer into something else, in the order of a forward pass.
    pub fn try_map<U, E>(self, mut f: impl FnMut(T) -> Result<U, E>) -> Result<BlockLinears<U>, E> {
        Ok(BlockLinears {
            qkv: self.qkv.try_map(&mut f)?,
            o: f(self.o)?,
            gate: self.gate.map(&mut f).transpose()?,
            up: f(self.up)?,
            down: f(self.down)?,
        })
    }
}

impl BlockConfig {
    /// Module name of a block.
    pub fn block_name(&self, layer: usize) -> String {
        format!("{}.{layer}", self.names.prefix)
    }

    /// The number of the block that a tensor or module belongs to, if it belongs to one.
    pub fn layer_of(&self, name: &str) -> Option<usize> {
        let rest = name.strip_prefix(&self.names.prefix)?.strip_prefix('.')?;
        rest.split('.').next()?.parse().ok().filter(|&layer| layer < self.layers)
    }

    /// The linear layers of a block, in the order of a forward pass.
    pub fn linears(&self, layer: usize) -> Vec<LinearSpec> {
        let BlockLinears { qkv, o, gate, up, down } = self.block_linears(layer);
        qkv.as_slice().iter().cloned().chain([o]).chain(gate).chain([up, down]).collect()
    }

    /// The same, those that share an input together.
    pub fn stages(&self, layer: usize) -> Vec<Vec<LinearSpec>> {
        let BlockLinears { qkv, o, gate, up, down } = self.block_linears(layer);
        vec![qkv.as_slice().to_vec(), vec![o], gate.into_iter().chain([up]).collect(), vec![down]]
    }

    /// The same by what they are for.
    pub fn block_linears(&self, layer: usize) -> BlockLinears<LinearSpec> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let spec = |module: &str, rows, cols, bias| {
            let name = format!("{}.{module}", self.block_name(layer));
            LinearSpec { name, rows, cols, bias, head: false }
        };
        let BlockNames { qkv, o, gate, up, down, .. } = &self.names;
        BlockLinears {
            qkv: match qkv {
                Qkv::Apart([q, k, v]) => Qkv::Apart([
                    spec(q, queries, hidden, self.qkv_bias),
                    spec(k, keys, hidden, self.qkv_bias),
                    spec(v, keys, hidden, self.qkv_bias),
                ]),
                Qkv::Together(all) => Qkv::Together(spec(all, queries + 2 * keys, hidden, self.qkv_bias)),
            },
            o: spec(o, hidden, queries, self.o_bias),
            gate: gate.map(|gate| spec(gate, inner, hidden, self.mlp_bias)),
            up: spec(up, inner, hidden, self.mlp_bias),
            down: spec(down, hidden, inner, self.mlp_bias),
        }
    }
}

/// A decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// its blocks
    pub blocks: BlockConfig,
    /// tokens in the vocabulary
    pub vocab_size: usize,
    /// longest sequence the model was made for
    pub max_positions: usize,
    /// whether the head may be the embedding
    pub tied: bool,
    /// first token of a text
    pub bos_token_id: Option<u32>,
    /// tokens that end a text
    pub eos_token_ids: Vec<u32>,
}

impl DecoderConfig {
    pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";

    /// The head. It has a weight of its own only where the checkpoint has one under this name.
    pub fn head(&self) -> LinearSpec {
        let (rows, cols) = (self.vocab_size, self.blocks.hidden_size);
        LinearSpec { name: "lm_head".to_owned(), rows, cols, bias: false, head: true }
    }
}

/// A text encoder: BERT and its relatives.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// its blocks
    pub blocks: BlockConfig,
    /// before the names of all tensors: `bert.`, or nothing
    pub prefix: String,
    /// tokens in the vocabulary
    pub vocab_size: usize,
    /// rows of the table of positions
    pub position_rows: usize,
    /// row of a text's first position
    pub first_position: usize,
    /// rows of the table of token types, of which the first is used
    pub token_types: usize,
    /// longest text that the checkpoint asks for, special tokens included
    pub max_tokens: usize,
    /// how the vectors of a text's tokens become one
    pub pooling: Pooling,
}

impl TextConfig {
    /// Tokens that there are positions for.
    pub fn positions(&self) -> usize {
        self.position_rows - self.first_position
    }

    /// Name of a tensor of the embedding.
    pub(crate) fn tensor(&self, part: &str) -> String {
        format!("{}embeddings.{part}", self.prefix)
    }
}

/// An image classifier: ViT, DeiT.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// its blocks
    pub blocks: BlockConfig,
    /// what the checkpoint calls the rest
    pub names: VisionNames,
    /// colours of an image
    pub channels: usize,
    /// height and width of an image
    pub image: [usize; 2],
    /// height and width of a patch
    pub patch: [usize; 2],
    /// names of the classes; none without a classifier
    pub labels: Vec<String>,
}

/// Tensor and module names of an image classifier outside its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisionNames {
    /// tokens before the patches: that of the class, that of distillation
    pub tokens: Vec<String>,
    /// what is added for the place of a token
    pub positions: String,
    /// the projection of patches
    pub patches: String,
    /// the last norm
    pub norm: String,
    /// the classifiers: each sees the token of the same number, and their logits are averaged
    pub heads: Vec<String>,
}

impl VisionConfig {
    /// Tokens of an image.
    pub fn tokens(&self) -> usize {
        self.names.tokens.len() + self.image[0] / self.patch[0] * (self.image[1] / self.patch[1])
    }

    /// Values of an image, `channels · height · width`.
    pub fn pixels(&self) -> usize {
        self.channels * self.image[0] * self.image[1]
    }

    /// The projection of patches, as a linear layer over the pixels of each.
    pub(crate) fn patches(&self) -> LinearSpec {
        let cols = self.channels * self.patch[0] * self.patch[1];
        let rows = self.blocks.hidden_size;
        LinearSpec { name: self.names.patches.clone(), rows, cols, bias: true, head: false }
    }

    /// The classifiers.
    pub fn heads(&self) -> Vec<LinearSpec> {
        let (rows, cols) = (self.labels.len(), self.blocks.hidden_size);
        let spec = |name: &String| LinearSpec { name: name.clone(), rows, cols, bias: true, head: true };
        self.names.heads.iter().map(spec).collect()
    }
}
