"""Real Kubernetes for tests.

``modules/``    Go modules that pin every program
``tools``       the programs, and where they lie once built          ``build``     builds them
``apiserver``   etcd and kube-apiserver on loopback, without root    ``access``    kubectl and kubeconfigs for it
``layers``      what image/install.sh makes, as layers               ``image``     the image of pods, from them
``faults``      a proxy in front of it that fails on purpose
``cluster``     a whole one-node cluster in namespaces of its own    ``node``      what runs inside those namespaces
``simulated``   nodes that only the API server knows                 ``machines``  which of them, and their queues
``release``     dinoctl as it is installed, and its command line
"""
