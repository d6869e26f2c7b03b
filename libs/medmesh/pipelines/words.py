"""A pipeline in plain words, for whoever decides whether it runs on a hospital's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmesh.contracts.pipeline import Pipeline, Step

_SAID: dict[str, tuple[str, str]] = {
    "window": ("values windowed (centre {center}, width {width})", "窗宽窗位变换（窗位 {center}，窗宽 {width}）"),
    "orient": ("axes turned to {to}", "方向转为 {to}"),
    "resample": ("resampled to {spacing} mm ({by})", "重采样至 {spacing} 毫米（{by}）"),
    "scale": ("scaled to {shape}", "缩放至 {shape}"),
    "crop": ("cut or filled around the middle to {shape}", "以中心裁剪或补齐至 {shape}"),
    "normalise": ("values normalised ({how})", "数值归一化（{how}）"),
    "rate": ("brought to {hertz} Hz", "采样率转为 {hertz} 赫兹"),
    "band": ("filtered to {low}-{high} Hz (0: no bound)", "带通滤波 {low}-{high} 赫兹（0 表示不限）"),
    "unit": ("converted to {to}", "单位换算为 {to}"),
    "ngrams": (
        "runs of {shortest} to {longest} words counted in {buckets} numbers by a hash; the text itself reaches no training code",
        "将 {shortest} 至 {longest} 个连续词按哈希计入 {buckets} 个数值；文本本身不提供给训练代码",
    ),
    "features": ("reduced to statistics of the values", "提取统计特征"),
}


def step(said: Step, language: str = "en") -> str:
    """One step, with its version; one that is not known here by its name and parameters."""
    values = {name: _value(name, value) for name, value in said.parameters.items()}
    if said.step == "normalise":
        values["how"] = _normalised(said.parameters, language)
    english, chinese = _SAID.get(said.step, (said.step, said.step))
    try:
        text = (chinese if language == "zh" else english).format(**values)
    except (KeyError, IndexError):
        text = said.step
    return f"{text}（{said.step} v{said.version}）" if language == "zh" else f"{text} ({said.step} v{said.version})"


def explain(said: Pipeline, language: str = "en") -> str:
    """What a node does with every item before training code sees it, in a sentence or two."""
    steps = ("；" if language == "zh" else "; ").join(step(one, language) for one in said.steps)
    if language == "zh":
        return (
            f"训练前由本院节点按处理流程 {said.name}（哈希 {said.hash[:16]}…）处理每项数据：{steps}。"
            f"处理结果以患者密钥加密，仅存于本院，随患者遗忘而销毁；步骤版本不同的节点拒绝参加。"
        )
    return (
        f"Before training your node prepares each item by the pipeline {said.name} (hash {said.hash[:16]}…): {steps}. "
        f"What it makes stays here under the patient's key, and goes when the patient is forgotten; a node with other versions of these "
        f"steps refuses."
    )


def _value(name: str, value: Any) -> str:
    if isinstance(value, tuple | list):
        return ("×" if name == "shape" else " × ").join(map(str, value))
    return str(value)


def _normalised(parameters: Mapping[str, Any], language: str) -> str:
    low, high, how = parameters.get("low"), parameters.get("high"), parameters.get("how")
    words = {
        "zscore": ("mean 0 and standard deviation 1", "均值 0、标准差 1"),
        "percentile": (f"0 to 1 between the percentiles {low} and {high}", f"第 {low} 至第 {high} 百分位映射为 0-1"),
        "range": ("0 to 1 between the lowest and the highest", "最小值至最大值映射为 0-1"),
    }
    english, chinese = words.get(str(how), (str(how), str(how)))
    channel = (", channel by channel", "，逐通道") if parameters.get("by_channel") is True else ("", "")
    return chinese + channel[1] if language == "zh" else english + channel[0]
