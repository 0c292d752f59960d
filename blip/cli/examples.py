"""An example or two of every command, which its help ends with; a test reads each one as the command line would."""

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "run": (
        "blip run",
        "blip run --set capfilt.threshold=0.7",
        "blip run finetune --preset flickr8k",
    ),
    "world": ("blip world data",),
    "ingest": (
        "blip ingest web --out datasets/web",
        "blip ingest web --out datasets/web --part 0/8",
    ),
    "validate": (
        "blip validate datasets/web datasets/human datasets/test --out results/validation",
    ),
    "tokenizer": ("blip tokenizer --data datasets/web --data datasets/human --out tokenizer",),
    "pretrain": (
        "blip pretrain --data datasets/web --data datasets/human \\\n"
        "  --tokenizer tokenizer --out models/unfiltered",
    ),
    "finetune": (
        "blip finetune captioning --model models/unfiltered \\\n"
        "  --data datasets/human --out models/captioner",
        "blip finetune vqa --model models/blip_base --out models/vqa \\\n"
        "  --params blip/presets/base_14m.yaml --data vqa_train.json \\\n"
        "  --photos vqa=/data/coco",
    ),
    "caption": (
        "blip caption photos/ --checkpoint models/captioner",
        "blip caption --model models/captioner --data datasets/web --out datasets/synthetic",
    ),
    "score": (
        "blip score --model models/filter --data datasets/web --data datasets/synthetic \\\n"
        "  --out datasets/scored",
    ),
    "select": (
        "blip select --data datasets/scored --out datasets/bootstrapped \\\n"
        "  --set capfilt.threshold=0.7",
    ),
    "compare": (
        "blip compare --baseline results/unfiltered --candidate results/bootstrapped \\\n"
        "  --out results/comparison/unfiltered",
    ),
    "promote": (
        "blip promote captioning --model models/captioning_bootstrapped \\\n"
        "  --results results/bootstrapped/captioning --out results/promotion/captioning",
    ),
    "vqa": (
        'blip vqa a.jpg --question "what is on the table?" --checkpoint models/vqa',
        'blip vqa a.jpg --question "is it raining?" --answers answers.txt \\\n'
        "  --checkpoint model_base_vqa_capfilt_large.pth",
    ),
    "match": (
        'blip match photos/ --text "a dog on a beach" --checkpoint models/filter',
        'blip match a.jpg --text "a dog" --checkpoint models/filter --heatmaps maps/',
    ),
    "features": (
        'blip features photos/ --text "a dog" --checkpoint models/filter \\\n'
        "  --out features.safetensors",
    ),
    "convert": (
        "blip convert model_base.pth models/blip_base --to blip",
        "blip convert models/captioner captioner_hf --to huggingface",
    ),
    "reproduce": (
        "blip reproduce",
        "blip reproduce --only coco-retrieval-large",
    ),
    "study": ("blip study docs/study.yaml",),
    "report": ("blip report --pictures docs/pictures",),
    "lineage": (
        'blip lineage "yellow square on top of two blue posts on pale wall"',
        "blip lineage --model models/captioner --json",
    ),
    "manifest": ("blip manifest models/captioner",),
    "track": ("blip track",),
    "ui": ("blip ui",),
    "evaluate retrieval": (
        "blip evaluate retrieval --checkpoint models/filter --data datasets/test \\\n"
        "  --out results/unfiltered/retrieval",
        "blip evaluate retrieval --checkpoint model_base_retrieval_coco.pth \\\n"
        "  --data coco_karpathy_test.json --photos /data/coco --out results/coco \\\n"
        "  --params blip/presets/base_129m.yaml",
    ),
    "evaluate captioning": (
        "blip evaluate captioning --checkpoint models/captioner --data datasets/test \\\n"
        "  --out results/unfiltered/captioning",
        "blip evaluate captioning --predictions captions.json \\\n"
        "  --annotations coco_karpathy_test_gt.json --out results/coco",
    ),
    "evaluate nocaps": (
        "blip evaluate nocaps --checkpoint model_large_caption.pth --data nocaps_val.json \\\n"
        "  --annotations nocaps_val_4500_captions.json --photos /data/nocaps \\\n"
        "  --params blip/presets/base_129m.yaml --out results/nocaps",
    ),
    "evaluate vqa": (
        "blip evaluate vqa --predictions answers.json --data vqa_val.json --out results/vqa",
        "blip evaluate vqa --checkpoint model_vqa.pth --data vqa_test.json \\\n"
        "  --answers answer_list.json --photos /data/coco --out results/vqa_test \\\n"
        "  --params blip/presets/base_129m.yaml",
    ),
    "evaluate nlvr": (
        "blip evaluate nlvr --checkpoint model_base_nlvr.pth --data nlvr_test.json \\\n"
        "  --photos /data/nlvr2 --params blip/presets/base_129m.yaml --out results/nlvr2",
    ),
    "evaluate visdial": (
        "blip evaluate visdial --predictions ranks.json --data visdial_1.0_val.json \\\n"
        "  --annotations visdial_1.0_val_dense_annotations.json --out results/visdial",
    ),
    "evaluate video-retrieval": (
        "blip evaluate video-retrieval --checkpoint model_base_retrieval_coco.pth \\\n"
        "  --data msrvtt_test.jsonl --videos /data/msrvtt/videos \\\n"
        "  --params blip/presets/base_129m.yaml --out results/msrvtt",
    ),
    "evaluate video-qa": (
        "blip evaluate video-qa --checkpoint model_base_vqa_capfilt_large.pth \\\n"
        "  --data test_qa.json --mapping youtube_mapping.txt --videos YouTubeClips \\\n"
        "  --params blip/presets/base_129m.yaml --out results/msvd_qa",
    ),
    "evaluate ovad": (
        "blip evaluate ovad --checkpoint model_base_retrieval_coco.pth --data ovad2000.json \\\n"
        "  --photos /data/coco/val2017 --params blip/presets/base_129m.yaml --out results/ovad",
    ),
    "evaluate ads": (
        "blip evaluate ads --checkpoint model_base_retrieval_coco.pth --data test_50k.tsv \\\n"
        "  --photos image_base64.tsv --params blip/presets/base_129m.yaml --out results/ads",
    ),
    "evaluate sugarcrepe": (
        "blip evaluate sugarcrepe --checkpoint model_base_retrieval_coco.pth \\\n"
        "  --data paper/sugarcrepe --photos /data/coco/val2017 --out results/sugarcrepe \\\n"
        "  --params blip/presets/base_129m.yaml",
    ),
    "evaluate judgments": (
        "blip evaluate judgments --judges expert --data ExpertAnnotations.txt \\\n"
        "  --annotations Flickr8k.token.txt --photos Flicker8k_Dataset \\\n"
        "  --checkpoint model_base_retrieval_flickr.pth --out results/judgments \\\n"
        "  --params blip/presets/base_129m.yaml",
    ),
    "evaluate filter": ("blip evaluate filter --data datasets/scored --out results/filter",),
    "benchmark list": ("blip benchmark list", "blip benchmark list nocaps"),
    "benchmark fetch": (
        "blip benchmark fetch coco-retrieval --unpack",
        "blip benchmark fetch checkpoints --only model_large_caption.pth",
    ),
    "catalog rebuild": ("blip catalog rebuild",),
    "catalog add": ("blip catalog add datasets/web models/captioner",),
    "catalog stats": ("blip catalog stats",),
    "k8s render": (
        "blip k8s render select | kubectl apply -f -",
        "blip k8s render pretrain@unfiltered --nodes 4 --gpus 8 | kubectl apply -f -",
    ),
    "k8s submit": (
        "blip k8s submit caption --parts 32",
        "blip k8s submit pretrain@unfiltered --nodes 4 --gpus 8 --no-wait",
    ),
    "k8s status": ("blip k8s status", "blip k8s status caption"),
    "k8s logs": ("blip k8s logs -f pretrain@unfiltered",),
    "k8s cancel": ("blip k8s cancel caption",),
}
"""Lines to type, by command; a long one goes on below."""


def epilog(command: str) -> str:
    """Give the end of a command's help; the mark before it keeps its lines as they are."""
    examples = EXAMPLES[command]
    lines = "\n".join(examples).splitlines()
    title = "Example:" if len(examples) == 1 else "Examples:"
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])
