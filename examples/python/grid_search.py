"""A cross-validated grid search as a program for Ray would do it, with one line changed: the import. The arrays are put once, every task reads them where they
lie, an actor collects the scores, and the best model is tried on records that no task has seen.

    BULKHEAD_PROFILE=DIR python examples/python/grid_search.py breast-cancer|digits [--out DIR] [--ids FILE --hold]

--out DIR   writes DIR/<data>.svg
--ids FILE  writes the ids of the data and of the collecting actor
--hold      keeps the data until standard input ends
"""

import argparse
import json
import os
import sys
import time

import numpy as np
from sklearn import datasets
from sklearn.model_selection import StratifiedKFold, train_test_split

import bulkhead.ray as ray

C_VALUES = [0.01, 0.1, 1.0, 10.0, 100.0]
GAMMA_VALUES = [0.0001, 0.001, 0.01, 0.1, 1.0]
FOLDS = 5
TITLES = {
    "breast-cancer": "Breast cancer: malignant or benign, from 30 measurements of cell nuclei",
    "digits": "Handwritten digits, from 8 × 8 pixels",
}


@ray.remote
class Collector:
    """The scores as they come in."""

    def __init__(self):
        self.scores = {}
        self.copied = 0

    def add(self, c, gamma, accuracy, own_copy):
        self.scores.setdefault((c, gamma), []).append(accuracy)
        self.copied += own_copy

    def count(self):
        return sum(len(found) for found in self.scores.values())

    def means(self):
        return {key: sum(found) / len(found) for key, found in self.scores.items()}

    def arrays_copied(self):
        return self.copied


@ray.remote
def try_out(records, labels, train, test, c, gamma, collector):
    """Fits on one part of the records and says how many of the other part it gets right."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    model = make_pipeline(StandardScaler(), SVC(C=c, gamma=gamma)).fit(records[train], labels[train])
    accuracy = float(model.score(records[test], labels[test]))
    ray.get(collector.add.remote(c, gamma, accuracy, int(records.flags.owndata or records.flags.writeable)))


@ray.remote
def confusion(records, labels, new_records, new_labels, c, gamma):
    from sklearn.metrics import confusion_matrix
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    model = make_pipeline(StandardScaler(), SVC(C=c, gamma=gamma)).fit(records, labels)
    return confusion_matrix(new_labels, model.predict(new_records))


def chart(title, means, best):
    """A heat map of the mean accuracies as an SVG page."""
    cell, left, top = 92, 110, 96
    low, high = min(means.values()), max(means.values())
    width, height = left + cell * len(GAMMA_VALUES) + 30, top + cell * len(C_VALUES) + 70
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="14">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="34" font-size="17" font-weight="600">{title}</text>',
        f'<text x="{left}" y="58" fill="#555">Mean accuracy over {FOLDS} folds of a support vector machine; the best is framed</text>',
    ]
    for row, c in enumerate(C_VALUES):
        y = top + cell * row
        parts.append(f'<text x="{left - 12}" y="{y + cell / 2 + 5}" text-anchor="end">C = {c:g}</text>')
        for column, gamma in enumerate(GAMMA_VALUES):
            x = left + cell * column
            share = (means[c, gamma] - low) / ((high - low) or 1)
            red, green, blue = (round(a + (b - a) * share) for a, b in ((240, 8), (244, 81), (248, 156)))
            frame = ' stroke="#d9480f" stroke-width="4"' if (c, gamma) == best else ""
            parts.append(f'<rect x="{x + 3}" y="{y + 3}" width="{cell - 6}" height="{cell - 6}" rx="6" fill="rgb({red},{green},{blue})"{frame}/>')
            parts.append(f'<text x="{x + cell / 2}" y="{y + cell / 2 + 5}" text-anchor="middle" fill="{"#fff" if share > 0.55 else "#222"}">{means[c, gamma]:.3f}</text>')
    for column, gamma in enumerate(GAMMA_VALUES):
        parts.append(f'<text x="{left + cell * column + cell / 2}" y="{top + cell * len(C_VALUES) + 26}" text-anchor="middle">γ = {gamma:g}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main():
    options = argparse.ArgumentParser()
    options.add_argument("data", choices=sorted(TITLES))
    options.add_argument("--out")
    options.add_argument("--ids")
    options.add_argument("--hold", action="store_true")
    chosen = options.parse_args()

    loaded = datasets.load_breast_cancer() if chosen.data == "breast-cancer" else datasets.load_digits()
    records, new_records, labels, new_labels = train_test_split(loaded.data, loaded.target, test_size=0.25, stratify=loaded.target, random_state=0)
    names = [str(name) for name in loaded.target_names]
    print(f"{len(loaded.data)} records of {loaded.data.shape[1]} values; {len(records)} for the search, {len(new_records)} kept aside")

    ray.init()
    began = time.perf_counter()
    shared = ray.put(np.ascontiguousarray(records))
    shared_labels = ray.put(labels)
    collector = Collector.options(name=f"scores-{chosen.data}").remote()
    folds = [(train, test) for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(records, labels)]
    if chosen.ids:
        # Renamed into place, so that whoever waits for the file never reads half of it.
        with open(f"{chosen.ids}.part", "w") as file:
            json.dump({"data": shared.hex(), "labels": shared_labels.hex(), "actor": f"scores-{chosen.data}"}, file)

    waiting = [try_out.remote(shared, shared_labels, train, test, c, gamma, collector) for c in C_VALUES for gamma in GAMMA_VALUES for train, test in folds]
    total, shown = len(waiting), 0
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=min(25, len(waiting)))
        ray.get(done)
        shown += len(done)
        print(f"fitted {shown} of {total} models", flush=True)
    means = ray.get(collector.means.remote())
    best = max(means, key=means.get)
    print(f"{total} models in {time.perf_counter() - began:.1f} s; {ray.get(collector.count.remote())} scores collected; arrays copied by tasks: {ray.get(collector.arrays_copied.remote())}")
    print(f"best: C = {best[0]:g}, gamma = {best[1]:g}, mean accuracy {means[best]:.3f}")

    found = ray.get(confusion.remote(shared, shared_labels, new_records, new_labels, *best))
    print(f"on the {len(new_records)} records kept aside: {int(np.trace(found))} right")
    for i, name in enumerate(names):
        missed = ", ".join(f"{int(n)} taken for {names[j]}" for j, n in enumerate(found[i]) if j != i and n)
        print(f"  {name:<10} {int(found[i, i])} of {int(found[i].sum())}{'  (' + missed + ')' if missed else ''}")

    if chosen.out:
        path = os.path.join(chosen.out, f"{chosen.data}.svg")
        with open(path, "w", encoding="utf-8") as file:
            file.write(chart(TITLES[chosen.data], means, best))
        print(f"chart: {path}")
    if chosen.ids:
        os.replace(f"{chosen.ids}.part", chosen.ids)
    if chosen.hold:
        sys.stdout.flush()
        sys.stdin.read()
        print(f"the records are still there for their owner: {ray.get(shared).shape[0]} of {ray.get(shared).shape[1]} values")


if __name__ == "__main__":
    main()
