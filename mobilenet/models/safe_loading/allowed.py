"""The names that a saved Keras model may use: layers, functions, initializers and the like."""

from __future__ import annotations

MAX_LAYERS = 2048  # NASNetLarge, the deepest of keras.applications, has 1,039
MAX_ACTIVATION = 1 << 28  # values of one layer's output for one image: 1 GiB of float32

MODELS = frozenset({"Functional", "Model", "Sequential"})
OPERATOR_LAYERS = frozenset({"TFOpLambda", "SlicingOpLambda"})
LAYERS = frozenset(
    {
        *("Activation", "ActivityRegularization", "Add", "AlphaDropout", "Average"),
        *("AveragePooling1D", "AveragePooling2D", "BatchNormalization", "CenterCrop"),
        *("Concatenate", "Conv1D", "Conv2D", "Conv2DTranspose", "Cropping2D", "Dense"),
        *("DepthwiseConv2D", "Dot", "Dropout", "ELU", "Flatten", "GaussianDropout"),
        *("GaussianNoise", "GlobalAveragePooling1D", "GlobalAveragePooling2D"),
        *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GroupNormalization", "InputLayer"),
        *("LayerNormalization", "LeakyReLU", "MaxPooling1D", "MaxPooling2D", "Maximum"),
        *("Minimum", "Multiply", "Normalization", "PReLU", "Permute", "RandomBrightness"),
        *("RandomContrast", "RandomCrop", "RandomFlip", "RandomHeight", "RandomRotation"),
        *("RandomTranslation", "RandomWidth", "RandomZoom", "ReLU", "RepeatVector"),
        *("Rescaling", "Reshape", "Resizing", "SeparableConv2D", "Softmax"),
        *("SpatialDropout2D", "SyncBatchNormalization", "Subtract", "ThresholdedReLU"),
        *("UnitNormalization", "UpSampling2D", "ZeroPadding2D"),
    }
)
# Layers that keras.applications defines for its own models, and the modules that define them.
APPLICATION_LAYERS = {
    "CustomScaleLayer": "tf_keras.src.applications.inception_resnet_v2",
    "LayerScale": "tf_keras.src.applications.convnext",
    "StochasticDepth": "tf_keras.src.applications.convnext",
}
# Functions of tensors alone: none of them reads, writes, fetches, prints or fills memory.
FUNCTIONS = frozenset(
    {
        *("__operators__.add", "__operators__.getitem", "cast", "clip_by_value", "concat"),
        *("expand_dims", "identity", "image.resize", "math.abs", "math.add", "math.divide"),
        *("math.exp", "math.l2_normalize", "math.maximum", "math.minimum", "math.multiply"),
        *("math.negative", "math.pow", "math.reduce_max", "math.reduce_mean"),
        *("math.reduce_sum", "math.rsqrt", "math.sigmoid", "math.sqrt", "math.square"),
        *("math.subtract", "math.tanh", "math.truediv", "nn.bias_add", "nn.elu", "nn.gelu"),
        *("nn.leaky_relu", "nn.relu", "nn.relu6", "nn.sigmoid", "nn.silu", "nn.softmax"),
        *("nn.swish", "nn.tanh", "reshape", "reverse", "squeeze", "transpose"),
    }
)
ACTIVATIONS = frozenset(
    {
        *("elu", "exponential", "gelu", "hard_sigmoid", "leaky_relu", "linear", "mish", "relu"),
        *("relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "swish"),
        "tanh",
    }
)
ACTIVATION_LAYERS = frozenset({"ELU", "LeakyReLU", "ReLU", "Softmax"})
INITIALIZERS = frozenset(
    {
        *("Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "Identity"),
        *("LecunNormal", "LecunUniform", "Ones", "Orthogonal", "RandomNormal"),
        *("RandomUniform", "TruncatedNormal", "VarianceScaling", "Zeros", "constant"),
        *("glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "identity"),
        *("lecun_normal", "lecun_uniform", "normal", "one", "ones", "orthogonal"),
        *("random_normal", "random_uniform", "truncated_normal", "uniform"),
        *("variance_scaling", "zero", "zeros"),
    }
)
REGULARIZERS = frozenset(
    {"L1", "L2", "L1L2", "OrthogonalRegularizer", "l1", "l2", "l1_l2", "orthogonal_regularizer"}
)
CONSTRAINTS = frozenset({"MaxNorm", "MinMaxNorm", "NonNeg", "RadialConstraint", "UnitNorm"})
DTYPES = frozenset(
    {
        *("bfloat16", "bool", "float16", "float32", "float64", "int32", "int64", "int8"),
        *("mixed_bfloat16", "mixed_float16", "uint8"),
    }
)


# tfmot's classes, and how a model gets rid of them.
TFMOT = {
    "PruneLowMagnitude": "save what tfmot.sparsity.keras.strip_pruning gives",
    **dict.fromkeys(
        ("QuantizeLayer", "QuantizeWrapper", "QuantizeWrapperV2", "QuantizeAnnotate"),
        "save the float model from before quantize_model",
    ),
}
