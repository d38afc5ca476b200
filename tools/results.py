"""Put comparisons of different seeds together, or write a page of several comparisons.

python tools/results.py part1/compare.json part2/compare.json --merge results/cifar100.json
python tools/results.py results/*.json --page docs/results.md
"""

from kdtasks.engine.cli import results

if __name__ == "__main__":
    results()
