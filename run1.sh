echo -5 > /proc/self/autogroup
cd /work/main
SEW_JAX_CACHE= taskset -c 0 /usr/bin/time -v /work/venv/py311/bin/python -m sew_jax.main --config=configs/demo.py --workdir=/tmp/d1/run --config.data=demo > /tmp/d1/log 2>&1
