// nextflow run pipelines/nextflow --pairs pairs.csv --output results [-profile test|slurm|docker]
// One task per shard of the list; the tasks write into one folder, and a last one joins them in summary.csv.
nextflow.enable.dsl = 2

params.pairs = null
params.output = 'results'
params.shards = 4
params.options = ''

process REGISTER {
    tag "${shard}/${params.shards}"

    input:
    tuple val(shard), val(pairs), val(output)

    output:
    val shard

    script:
    """
    nephi batch "${pairs}" --output "${output}" --shard ${shard}/${params.shards} --threads ${task.cpus} ${params.options} || [ \$? -eq 1 ]
    """
}

process SUMMARISE {
    input:
    val shards
    val pairs
    val output

    output:
    path 'summary.csv'

    script:
    """
    nephi summarise "${output}" --pairs "${pairs}" || [ \$? -eq 1 ]
    cp "${output}/summary.csv" .
    """
}

workflow {
    pairs = file(params.pairs, checkIfExists: true).toAbsolutePath().toString()
    output = file(params.output).toAbsolutePath().toString()
    shards = Channel.of(1..(params.shards as int)).map { [it, pairs, output] }
    REGISTER(shards)
    SUMMARISE(REGISTER.out.collect(), pairs, output)
}
